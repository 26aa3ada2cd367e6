"""``python -m mlx_redrafter.server``: serve models over HTTP."""

import sys

from ..ui.cli.serve import main

if __name__ == "__main__":
    sys.exit(main())
