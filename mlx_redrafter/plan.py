"""``python -m mlx_redrafter.plan MODEL``: what drafting costs and promises on this machine."""

import sys

from .ui.programs import plan

if __name__ == "__main__":
    sys.exit(plan())
