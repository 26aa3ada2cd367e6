"""How far plain steps among chosen drafts are apart."""

from __future__ import annotations

import pytest

from mlx_redrafter.planning.plain_breaks import PLAIN_EVERY, PlainBreaks


def drafts_before_a_break(agreed: int) -> int:
    breaks = PlainBreaks()
    breaks.space(1.0, seen=True, told=True, free=False, agreed=agreed)
    while not breaks.due:
        breaks.drafts += 1
    return breaks.drafts


@pytest.mark.parametrize(
    ("agreed", "wanted"), [(0, 0.25), (1, 0.5), (4, 4.0), (5, 4.0), (2_000, 4.0), (10**9, 4.0)]
)
def test_breaks_become_rarer_up_to_a_limit_however_long_decoding_goes_on(
    agreed: int, wanted: float
) -> None:
    assert drafts_before_a_break(agreed) == wanted * PLAIN_EVERY
