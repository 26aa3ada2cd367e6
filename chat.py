"""Chat with a local model that drafts ahead of itself: ``python chat.py --help``."""

import sys

from mlx_redrafter.ui.chat import main

if __name__ == "__main__":
    sys.exit(main())
