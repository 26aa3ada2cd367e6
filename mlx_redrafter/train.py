"""``python -m mlx_redrafter.train --model M --data D``: a drafter for a model, made here."""

import sys

from .ui.programs import train

if __name__ == "__main__":
    sys.exit(train())
