"""Chat with a local model that drafts ahead of itself: ``python chat.py --help``."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - told, not tripped over
    sys.exit("chat.py: Python 3.11 or later is needed; on a Mac: brew install python@3.13")

if __name__ == "__main__":
    try:
        from mlx_redrafter.ui.programs import chat

        sys.exit(chat())
    except KeyboardInterrupt:  # before there is anything that heeds it
        sys.exit(130)
