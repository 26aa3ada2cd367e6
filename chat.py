"""Chat with a local model that drafts ahead of itself: ``python chat.py --help``."""

import sys

if __name__ == "__main__":
    try:
        from mlx_redrafter.ui.chat.main import main

        sys.exit(main())
    except KeyboardInterrupt:  # while Python was still importing
        sys.exit(130)
