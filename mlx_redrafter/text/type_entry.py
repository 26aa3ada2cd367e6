"""The weights' type in a config.json, which transformers looks up where it reads a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import RedrafterError

ENTRIES = ("dtype", "torch_dtype")
TYPES = ("float32", "float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2")


@contextmanager
def naming_type(config: Mapping[str, Any], path: Path) -> Iterator[None]:
    """Name the configuration's type, where it is none, in place of a tokenizer that did not load.

    Args:
        config: What the file holds.
        path: The file, for the sentence.

    Raises:
        RedrafterError: The one from inside, or one that names the entry.
    """
    try:
        yield
    except RedrafterError as error:
        for part in (config, *config.values()):
            for name in ENTRIES:
                value = part.get(name) if isinstance(part, Mapping) else None
                # Nothing looks numbers up, and mappings have a type for each part.
                if isinstance(value, str | list) and value not in TYPES:
                    raise RedrafterError(
                        f"{path} says {value!r:.100} as {name}, which is no type of weights: write "
                        f"one of {', '.join(TYPES)}, or remove the entry."
                    ) from error
        raise
