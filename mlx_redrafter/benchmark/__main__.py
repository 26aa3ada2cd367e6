"""``python -m mlx_redrafter.benchmark``: what decoding costs and gains on this machine."""

import sys

if __name__ == "__main__":
    try:
        from ..ui.cli.benchmark import main

        sys.exit(main())
    except KeyboardInterrupt:  # while Python was still importing
        sys.exit(130)
