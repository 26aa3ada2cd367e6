"""What comes before a text's first step: its shape is checked, and its prompt read."""

from __future__ import annotations

from collections.abc import Iterator

from .lockstep import check_same_cache
from .model import SpeculativeModel
from .sequence import Sequence


def check_shape(sequence: Sequence, *, planned: bool) -> None:
    """Refuse a shape that cannot be drafted, before anything is computed.

    Args:
        sequence: The text.
        planned: Whether a planner chooses shapes in place of the text's own.

    Raises:
        RedrafterError: If the text's own shape, or sampling, cannot be drafted.
    """
    if sequence.drafts and not planned:
        sequence.sources_for(sequence.config.beam, timed=True)


def prefill(
    model: SpeculativeModel, sequence: Sequence, *, alike: bool
) -> Iterator[tuple[int, int]]:
    """Read a text's prompt, all but its last token; yields (tokens done, tokens to do).

    Args:
        model: Its model.
        sequence: The text.
        alike: Whether every rank, if there are several, has to find as much of it in its cache.

    Raises:
        RedrafterError: If one does not; before anything is computed.
    """
    model.target.take_cores(len(sequence.prompt))
    pieces, begun = sequence.prefill(), False
    while True:
        with model.computing(), sequence.cache.lock:
            done = next(pieces, None)
        if done is None:
            break
        if alike and not begun:
            check_same_cache(model.ranks, sequence.prompt, done[0])
        begun = True
        model.mark()
        yield done
