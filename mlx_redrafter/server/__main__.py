"""``python -m mlx_redrafter.server``: serve models over HTTP."""

import sys

from ..ui.programs import server

if __name__ == "__main__":
    sys.exit(server())
