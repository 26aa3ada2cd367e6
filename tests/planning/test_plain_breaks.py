"""How far plain steps among chosen drafts are apart."""

from __future__ import annotations

import pytest

from mlx_redrafter.planning.plain_breaks import OPENING_STEPS, PLAIN_EVERY, PlainBreaks


def drafts_before_a_break(agreed: int) -> int:
    breaks = PlainBreaks()
    breaks.space(1.0, seen=True, told=True, free=False, agreed=agreed)
    while not breaks.due:
        breaks.take_draft()
    return breaks.drafts


@pytest.mark.parametrize(
    ("agreed", "wanted"), [(0, 0.25), (1, 0.5), (4, 4.0), (5, 4.0), (2_000, 4.0), (10**9, 4.0)]
)
def test_breaks_become_rarer_up_to_a_limit_however_long_decoding_goes_on(
    agreed: int, wanted: float
) -> None:
    assert drafts_before_a_break(agreed) == wanted * PLAIN_EVERY


def test_plain_steps_come_first_once_where_they_never_overlap() -> None:
    """None of them tells what a plain step in a row takes, and to wait for more would not end."""
    breaks, opened = PlainBreaks(), 0
    for _ in range(40):
        breaks.space(1.2, seen=True, told=False, free=False, agreed=0)
        while breaks.due:
            breaks.take_plain(1)
            opened += 1
        breaks.take_draft()
        breaks.take_plain(1)  # as where copies are verified, or other prompts read
    assert opened == OPENING_STEPS
    breaks.space(1.2, seen=True, told=True, free=False, agreed=0)
    breaks.space(1.2, seen=True, told=False, free=False, agreed=0)
    assert breaks.due, "costs were measured again"
