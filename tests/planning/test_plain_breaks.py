"""How far plain steps among chosen drafts are apart."""

from __future__ import annotations

import pytest

from mlx_redrafter.planning.plain_breaks import LEAST_APART, MOST_APART, PlainBreaks


def drafts_before_a_break(gain: float, deviation: float) -> int:
    breaks = PlainBreaks()
    breaks.space(gain, seen=True, told=True, free=False, deviation=deviation)
    while not breaks.due:
        breaks.drafts += 1
    return breaks.drafts


@pytest.mark.parametrize(("gain", "deviation"), [(0.9, 0.1), (1.0, 0.1), (1.1, 0.2), (1.5, 0.5)])
def test_breaks_follow_soon_where_plain_decoding_may_be_as_fast(
    gain: float, deviation: float
) -> None:
    assert drafts_before_a_break(gain, deviation) == LEAST_APART


@pytest.mark.parametrize(("gain", "deviation"), [(1.0, 0.04), (1.1, 0.1), (1.5, 0.1), (2.0, 0.0)])
def test_breaks_are_rare_where_drafts_are_known_to_be_faster(gain: float, deviation: float) -> None:
    assert drafts_before_a_break(gain, deviation) == round(MOST_APART * gain**2)
