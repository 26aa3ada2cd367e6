"""Drafts that are only compared with the text, while verifying them would lose more."""

from __future__ import annotations

import pytest
from planning_machines import (
    BABBLE,
    CPU,
    FLAT,
    KNOWN,
    M1,
    M3,
    OPENBLAS,
    PLAIN,
    REAL,
    Chat,
    Text,
    after_first_tokens,
    best_speed,
    costs_of,
    recorded_of,
    worth,
)  # fmt: skip

from mlx_redrafter.drafting.recorded import RecordedDraft
from mlx_redrafter.engine.shape_planner import ObservedStep
from mlx_redrafter.engine.watch import WatchedDraft
from mlx_redrafter.planning.allowance import EARLY_TOKENS
from mlx_redrafter.planning.planner import Planner
from mlx_redrafter.planning.trials import PlannerState

CURVES = (CPU, M3, M1, OPENBLAS, FLAT)


def chat_of(curve: str, *, watches: bool = True, noise: float = 0.0) -> Chat:
    costs = costs_of(curve)
    return Chat(costs, Planner(costs, watches=watches), noise=noise)


@pytest.mark.parametrize("curve", CURVES)
def test_what_nobody_can_guess_costs_less_than_verifying_lost(curve: str) -> None:
    lost = {}
    for watches in (False, True):
        chat = chat_of(curve, watches=watches).answers(BABBLE, 40, 1)
        lost[watches] = 1.0 - chat.speed()
        assert chat.planner
        assert chat.planner.state is PlannerState.OFF
    assert lost[True] <= 0.75 * lost[False]
    assert lost[True] <= 0.01


@pytest.mark.parametrize("curve", CURVES)
def test_after_a_draft_in_vain_the_next_ones_are_watched(curve: str) -> None:
    chat = chat_of(curve).answers(BABBLE, 12, 3)
    verified = [place for place, shape in enumerate(chat.shapes()) if shape is not None]
    assert verified[0] < EARLY_TOKENS, "it is not known yet"
    assert verified[-1] < 200
    assert chat.watches >= 20


@pytest.mark.parametrize("kind", [KNOWN, REAL], ids=["known", "real"])
@pytest.mark.parametrize("curve", [CPU, M3, FLAT])
def test_a_text_that_gets_easier_is_found_by_watching(
    curve: str, kind: tuple[float, float, float]
) -> None:
    costs = costs_of(curve)
    chat = chat_of(curve, noise=0.05).answers(BABBLE, 10, 1)
    began = len(chat.steps)
    while sum(tokens for _, tokens, _ in chat.steps[began:]) < 400:
        chat.answers(kind, 1, len(chat.steps))
    since = len(chat.steps)
    chat.answers(kind, 6, 7)
    assert chat.planner
    assert chat.planner.state is PlannerState.DRAFTING
    assert worth(chat, since, kind, costs) >= 0.85 * best_speed(kind, costs)


def test_where_a_record_says_that_nothing_pays_the_first_probe_is_watched() -> None:
    costs = costs_of(M3)
    planner = Planner(costs, watches=True, recorded=recorded_of(BABBLE))
    planner.begin()
    after_first_tokens(planner)
    assert planner.plan.shape is None
    assert planner.plan.watch is not None
    without = Planner(costs, recorded=recorded_of(BABBLE))
    without.begin()
    after_first_tokens(without)
    assert without.plan.watch is None
    assert without.plan.shape is not None


def test_a_shape_that_is_chosen_is_verified() -> None:
    chat = chat_of(CPU).answers(KNOWN, 3)
    assert chat.planner
    assert chat.planner.state is PlannerState.DRAFTING
    assert chat.planner.plan.watch is None


def watched_in_vain(planner: Planner, seconds: float, steps: int = 600) -> int:
    """How many drafts are watched in so many plain steps, each of which takes so long more."""
    made, last, text = 0, None, Text(*BABBLE)
    for _ in range(steps):
        shape = planner.plan.watch
        tree = text.step(last).tree if last else None
        over = [WatchedDraft(last, RecordedDraft.of(tree, (0,)))] if last and tree else []
        planner.observe(
            ObservedStep(
                None, [PLAIN], 1.0 + seconds * (shape is not None), 64, next_shape=shape,
                watching=shape is not None, watched=over, early=True, overlapped=True,
            )
        )  # fmt: skip
        last, made = shape, made + (shape is not None)
    return made


def test_dearer_than_measured_they_become_rarer() -> None:
    made = {}
    for seconds in (0.3, 1.2):
        planner = Planner(costs_of(CPU), watches=True, recorded=recorded_of(BABBLE))
        planner.begin()
        made[seconds] = watched_in_vain(planner, seconds)
    assert 0 < made[1.2] <= 0.5 * made[0.3]


@pytest.mark.parametrize("curve", [CPU, M3, OPENBLAS])
def test_nothing_is_watched_before_the_planner_is_out_of_patience(curve: str) -> None:
    waits = []
    for answers in range(10, 14):
        planner = chat_of(curve).answers(BABBLE, answers, 3).planner
        assert planner
        waited = 0
        while planner.plan.watch is None and waited < 2000:
            patience = planner.plan.patience
            for left in range(patience, 0, -1):
                assert planner.plan.watch is None
                assert planner.plan.shape is None
                assert planner.plan.patience <= left, "it is no longer than was said"
                planner.observe(ObservedStep(None, [PLAIN], 1.0, 64, early=True, overlapped=True))
                waited += 1
            if planner.plan.watch is None:
                planner.observe(ObservedStep(None, [PLAIN], 1.0, 64, early=True, overlapped=True))
                waited += 1
        assert planner.plan.watch is not None
        waits.append(waited)
    assert max(waits) > 20
