"""When drafts pause within a text."""

import pytest

from mlx_redrafter.engine.backoff import ALLOWED_LOSS, FIRST_PAUSE, LONGEST_PAUSE, DraftBackoff


def take(pauses: DraftBackoff) -> bool:
    """Whether the next step is to be plain; it is taken."""
    pausing = pauses.pausing
    pauses.paused()
    return pausing


def plain_steps(pauses: DraftBackoff) -> int:
    """Plain steps until the next draft."""
    steps = 0
    while take(pauses):
        steps += 1
    return steps


def until_paused(pauses: DraftBackoff, cost: float, tokens: float = 1.0, most: int = 100) -> int:
    """Drafts in vain before a pause; takes its first step."""
    for drafts in range(most):
        if take(pauses):
            return drafts
        pauses.drafted(cost, tokens)
    return most


def test_drafts_go_on_while_they_pay() -> None:
    pauses = DraftBackoff()
    assert until_paused(pauses, cost=2.0, tokens=2.0) == 100
    assert until_paused(pauses, cost=2.0, tokens=9.0) == 100


@pytest.mark.parametrize(("cost", "drafts"), [(4.0, 2), (2.0, 6), (1.25, 21)])
def test_the_dearer_drafts_are_the_sooner_they_pause(cost: float, drafts: int) -> None:
    """The first pause comes as soon as more than the allowed loss is lost."""
    assert until_paused(DraftBackoff(), cost) == drafts
    assert drafts * (cost - 1) > ALLOWED_LOSS >= (drafts - 1) * (cost - 1)


def test_pauses_double_up_to_the_longest() -> None:
    pauses, lengths = DraftBackoff(), []
    until_paused(pauses, 2.0)
    lengths.append(1 + plain_steps(pauses))
    for _ in range(7):
        pauses.drafted(2.0, 1.0)
        lengths.append(plain_steps(pauses))
    assert lengths == [2, 4, 8, 16, 32, 64, 64, 64]
    assert lengths[0] == FIRST_PAUSE
    assert max(lengths) == LONGEST_PAUSE


def test_a_draft_that_pays_makes_the_next_pause_short_again() -> None:
    pauses = DraftBackoff()
    until_paused(pauses, 2.0)
    plain_steps(pauses)
    pauses.drafted(2.0, 1.0)
    assert plain_steps(pauses) == 2 * FIRST_PAUSE
    pauses.drafted(2.0, 12.0)
    assert until_paused(pauses, 2.0) == 6
    assert 1 + plain_steps(pauses) == FIRST_PAUSE


def test_a_small_gain_does_not_make_up_for_a_long_loss() -> None:
    """Among drafts in vain one that barely pays is no turn: the next failure pauses again."""
    pauses = DraftBackoff()
    until_paused(pauses, 3.0)
    plain_steps(pauses)
    pauses.drafted(3.0, 3.0)
    assert not take(pauses)
    pauses.drafted(3.0, 1.0)
    assert plain_steps(pauses) == FIRST_PAUSE


@pytest.mark.parametrize("cost", [1.1, 2.0, 4.0])
@pytest.mark.parametrize("length", [40, 400])
def test_what_a_text_of_failures_may_lose(cost: float, length: int) -> None:
    """Never more than the allowed loss, a draft, and one draft for each pause."""
    pauses, spent = DraftBackoff(), 0.0
    for _ in range(length):
        if take(pauses):
            spent += 1.0
        else:
            pauses.drafted(cost, 1.0)
            spent += cost
    taken = paused = 0
    while paused < length:  # pauses that fit into so many steps
        paused += min(FIRST_PAUSE * 2**taken, LONGEST_PAUSE)
        taken += 1
    assert spent - length <= ALLOWED_LOSS + (cost - 1) * (1 + taken)
