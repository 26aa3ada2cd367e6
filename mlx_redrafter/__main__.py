"""``python -m mlx_redrafter``: the commands there are, and ``python -m mlx_redrafter COMMAND``."""

import sys

from .ui.programs import run

if __name__ == "__main__":
    sys.exit(run("commands"))
