"""Libraries that would write into the middle of the screen."""

from __future__ import annotations

import logging
import warnings


def quiet_libraries() -> None:
    """Have transformers and the Hub report errors only: their advice is for programmers."""
    import transformers

    transformers.logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(transformers|huggingface_hub|mlx_lm)\b")
