"""A configuration's counts against the tensors that are really there, before anything is built."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import RedrafterError
from ..system.tensor_files import Tensors

# A quantised row is packed up to 32 / 2 times, and a width may be split over heads.
PACKED = 32
# Sizes that stand for no tensor's dimension (chunks, windows, image sizes) may be as large as this.
ALWAYS = 1 << 20
# Each token of it is a product a draft.
LARGEST_LOOKBACK = 1024
_COUNTS = re.compile(
    r"^(num|n)_?(\w+_)?(layers?|blocks)$|^(\w+_)?layers$|^depth$|^independent_heads$"
)
_SIZES = re.compile(
    r"(hidden|embed|intermediate|vocab|exit|draft|head|expert|rank|state|inner|ffn|model|proj|conv).*"
    r"(size|dim|heads|experts|width|rank)|^(n|num)_.*(heads|experts)|d_model|n_embd|head_dim",
    re.IGNORECASE,
)
# Numbers of layers that are no limits, or lists of places.
_NO_COUNTS = re.compile(r"max_window|skip|cross|full|sparse|dense|moe|shared")


def check_counts(config: Mapping[str, Any], tensors: int, path: Path) -> None:
    """Refuse more layers, blocks or heads than there are tensors: building them would be wasted.

    Args:
        config: A model's, drafter's or adapter's configuration.
        tensors: How many its weights hold; 0 where that is not known.
        path: The configuration's file, for the sentence.

    Raises:
        RedrafterError: Naming the key.
    """
    for key, value in _numbers(config):
        counts = _COUNTS.search(key) and not _NO_COUNTS.search(key)
        if counts and tensors and value > tensors:
            raise _impossible(path, key, value, f"{tensors:,} tensors")


def check_config(config: Mapping[str, Any], tensors: Tensors, path: Path) -> None:
    """Refuse counts of layers and sizes that no weights of this checkpoint can fill.

    Args:
        config: A model's, drafter's or adapter's configuration.
        tensors: What its weights hold.
        path: The configuration's file, for the sentence.

    Raises:
        RedrafterError: Naming the key.
    """
    check_counts(config, tensors.count, path)
    for key, value in _numbers(config):
        if key == "lookback" and value > LARGEST_LOOKBACK:
            raise RedrafterError(
                f"{path} asks for a lookback of {value:,} tokens: {LARGEST_LOOKBACK:,} are the "
                "most."
            )
        sizes = _SIZES.search(key)
        most = tensors.widest if key == "rank" else max(ALWAYS, PACKED * tensors.widest)
        if (sizes or key == "rank") and value > most:
            raise _impossible(path, key, value, f"no dimension above {tensors.widest:,}")


def _impossible(path: Path, key: str, value: int, there: str) -> RedrafterError:
    return RedrafterError(
        f"{path} asks for {value:,} as {key}, but the weights hold {there}: use the configuration "
        "that belongs to the weights."
    )


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Every whole number of a configuration with its key, one level of nesting down."""
    for key, value in config.items():
        nested = value.items() if isinstance(value, Mapping) else ((key, value),)
        for name, inner in nested:
            for one in inner if isinstance(inner, list) else [inner]:
                if isinstance(one, int) and not isinstance(one, bool):
                    yield str(name), one
