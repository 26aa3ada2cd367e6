"""``python -m mlx_redrafter``: the commands there are, and ``python -m mlx_redrafter COMMAND``."""

import sys

if __name__ == "__main__":
    try:
        from .ui.commands import main

        sys.exit(main())
    except KeyboardInterrupt:  # while Python was still importing
        sys.exit(130)
