"""Overrides of a checkpoint's configuration: named where a model does not load with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

from ..errors import RedrafterError
from ..ranges import of_kind_or_none, shown
from .boundary import AGAIN
from .drafter_files import tokenizer_hash

MODEL, TOKENIZER = "model_config", "tokenizer_config"


def check_overrides(dtype: Any, tokenizer_config: Any, model_config: Any) -> None:
    """Refuse a type that is none for weights, and overrides that name nothing.

    Raises:
        RedrafterError: Saying which.
    """
    floating = isinstance(dtype, mx.Dtype) and mx.issubdtype(dtype, mx.floating)
    if dtype is not None and not floating:
        raise RedrafterError(
            f"dtype has to be mx.float32, mx.float16 or mx.bfloat16, and is {shown(dtype)}."
        )
    for name, given in ((TOKENIZER, tokenizer_config), (MODEL, model_config)):
        of_kind_or_none(given, name, Mapping, "a mapping of names to values")


def remedy(**overrides: Mapping[str, Any] | None) -> str:
    """What to do where files cannot be loaded: they may be good, and only not fit the overrides.

    Args:
        **overrides: What was given, by the name of the option.
    """
    flags = [f"--{name.replace('_', '-')} ({name})" for name, given in overrides.items() if given]
    return f"correct or leave out {' or '.join(flags)}" if flags else AGAIN


@contextmanager
def overridden(option: str, given: Mapping[str, Any] | None) -> Iterator[None]:
    """Name the overrides in what is said of a model.

    Raises:
        RedrafterError: The one from inside, with their names before it.
    """
    try:
        yield
    except RedrafterError as error:
        if not given:
            raise
        raise RedrafterError(f"With {', '.join(map(str, given))} from {option}: {error}") from error


def check_vocabulary(
    given: Mapping[str, Any] | None,
    tokenizer: Any,
    read_tokenizer: Callable[[dict[str, Any]], Any],
    error: RedrafterError,
) -> None:
    """Blame the overrides, not the drafter, where they gave a tokenizer another vocabulary.

    Args:
        given: Overrides of the tokenizer's.
        tokenizer: With them.
        read_tokenizer: Reads it with the overrides that it is told.
        error: What was said of the drafter.

    Raises:
        RedrafterError: If the vocabulary is another one without them.
    """
    if given and tokenizer_hash(tokenizer) != tokenizer_hash(read_tokenizer({})):
        raise RedrafterError(
            f"With {', '.join(map(str, given))} from {TOKENIZER} the tokenizer has another "
            f"vocabulary than the one the drafter was made for: {remedy(tokenizer_config=given)}."
        ) from error
