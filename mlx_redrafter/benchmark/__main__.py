"""``python -m mlx_redrafter.benchmark``: what decoding costs and gains on this machine."""

import sys

from ..ui.programs import benchmark

if __name__ == "__main__":
    sys.exit(benchmark())
