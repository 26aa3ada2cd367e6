"""The log-probabilities of a step's tokens, as the host reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx

from ..choices import Choices
from ..tree import read_numbers

# A token's log-probability, those of the likeliest, the likeliest first, and those of all tokens.
Logprobs = tuple[float | None, tuple[tuple[int, float], ...], mx.array | None]


def logprobs_of(choices: Choices, path: Sequence[int]) -> list[Logprobs]:
    """Of the choice after each node of an accepted path; without where nobody asked for them."""
    if choices.logprobs is None:
        return [(None, (), None) for _ in path]
    chosen = read_numbers(choices.logprobs)
    if choices.all_logprobs is not None:
        # Copied, so that a token that is kept keeps no rows of other branches; and evaluated, so
        # that it can be read in any thread.
        rows = list(choices.all_logprobs[mx.array(list(path))])
        mx.eval(rows)
        return [(chosen[node], (), row) for node, row in zip(path, rows, strict=True)]
    if choices.top_tokens is None or choices.top_logprobs is None:
        return [(chosen[node], (), None) for node in path]
    ids, values = read_numbers(choices.top_tokens), read_numbers(choices.top_logprobs)
    tops = [_likeliest(ids[node], values[node]) for node in path]
    return [(chosen[node], top, None) for node, top in zip(path, tops, strict=True)]


def _likeliest(ids: Sequence[int], values: Sequence[float]) -> tuple[tuple[int, float], ...]:
    """Tokens with their log-probabilities, the likeliest first.

    Where fewer may come next than were asked for, the others are no alternatives.
    """
    pairs = [pair for pair in zip(ids, values, strict=True) if pair[1] > -math.inf]
    return tuple(sorted(pairs, key=lambda pair: -pair[1]))
