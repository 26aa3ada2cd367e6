"""``python -m mlx_redrafter.plan MODEL``: what drafting costs and promises on this machine."""

import sys

from .ui.cli.plan import main

if __name__ == "__main__":
    sys.exit(main())
