"""Planned chats whose drafts are made in the step before, with the times of a CPU and of a GPU."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from early_chats import EarlyChat, first
from planning_machines import (
    BABBLE,
    CPU,
    KNOWN,
    M3,
    OPENBLAS,
    PLAIN,
    REAL,
    Text,
    best_speed,
    costs_of,
    recorded_of,
)

from mlx_redrafter.drafting.recorded import RecordedDraft
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.engine.shape_planner import ObservedStep
from mlx_redrafter.engine.step import StepRecord
from mlx_redrafter.engine.watch import WatchedDraft
from mlx_redrafter.planning.clocks import PLAIN as PLAIN_ROWS
from mlx_redrafter.planning.planner import Planner
from mlx_redrafter.planning.shapes import covers

HARDLY_PAYS = (0.4, 0.32, 0.2)
HOPELESS = (0.12, 0.05, 0.05)  # and the drafter knows it
LEVEL = 0.04  # a drafted level, in plain steps: cheap enough to be made early
ON_CPU, ON_GPU = 0.9, 0.0
Kind = tuple[float, float, float]


def chat(
    curve: str,
    kind: Kind,
    ahead: float,
    seed: int = 0,
    *,
    recorded: Kind | None = None,
    count: int = 16,
) -> EarlyChat:
    costs = costs_of(curve, LEVEL)
    planner = Planner(costs, watches=True, recorded=recorded_of(recorded) if recorded else None)
    begun = EarlyChat(costs, planner, alone=1.05, noise=0.03, ahead=ahead, rng=random.Random(seed))
    return answered(begun, kind, seed, count)


def answered(begun: EarlyChat, kind: Kind, seed: int = 0, count: int = 16) -> EarlyChat:
    for number in range(count):
        begun.answer(Text(*kind, seed=100 * seed + number))
    return begun


@pytest.mark.parametrize("ahead", [ON_CPU, ON_GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize("kind", [REAL, HARDLY_PAYS, BABBLE])
@pytest.mark.parametrize("curve", [CPU, M3, OPENBLAS])
def test_steps_that_cost_what_was_measured_leave_the_clocks_as_they_are(
    curve: str, kind: Kind, ahead: float
) -> None:
    planners = [chat(curve, kind, ahead, seed).planner for seed in range(6)]
    for rows in (PLAIN_ROWS, 8):
        factors = [planner.clocks.factor(rows) for planner in planners if planner is not None]
        assert sum(factors) / len(factors) == pytest.approx(1.0, abs=0.04), rows


@pytest.mark.parametrize("ahead", [ON_CPU, ON_GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("kind", [REAL, HARDLY_PAYS, BABBLE])
@pytest.mark.parametrize("curve", [CPU, M3, OPENBLAS])
def test_it_is_as_fast_as_the_best_single_choice(
    curve: str, kind: Kind, recorded: bool, ahead: float
) -> None:
    costs = costs_of(curve, LEVEL)
    best = max(best_speed(kind, costs), 1.0 / costs.plain[0])
    shares = [
        chat(curve, kind, ahead, seed, recorded=kind if recorded else None).speed() / best
        for seed in range(6)
    ]
    assert sum(shares) / len(shares) >= (0.93 if recorded else 0.88)


@pytest.mark.parametrize("curve", [CPU, M3])
def test_a_larger_probe_is_verified_no_further_than_is_worth_it(curve: str) -> None:
    """On texts whose drafts are right for a token or two, four fifths of it would be in vain."""
    drafted = verified = 0
    for seed in range(6):
        begun = chat(curve, REAL, ON_CPU, seed, recorded=REAL)
        probes = [
            (shape.nodes, nodes)
            for shape, nodes in watched_probes(begun)
            if shape.nodes >= 20  # others are worth it now and then
        ]
        drafted += sum(whole for whole, _ in probes)
        verified += sum(nodes for _, nodes in probes)
    assert drafted >= 100, "there were some"
    assert verified < 0.7 * drafted


def watched_probes(begun: EarlyChat) -> list[tuple[BeamShape, int]]:
    """Drafts that were compared with the text, and how many of their nodes were verified."""
    return [
        (before, nodes)
        for (_, nodes, before), watched in zip(begun.drafts, begun.compared, strict=True)
        if watched and before is not None
    ]


def test_what_a_larger_probe_shows_is_learnt_though_little_of_it_was_verified() -> None:
    begun = chat(CPU, REAL, ON_CPU, recorded=REAL)
    planner = begun.planner
    assert planner is not None
    probes = watched_probes(begun)
    wide = [shape for shape, _ in probes if shape.width == 8]
    assert wide
    assert planner._memory.covering(wide[-1]) >= 1


def test_while_a_larger_probe_is_under_way_no_other_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun = chat(CPU, REAL, ON_CPU, recorded=REAL, count=1)
    planner = begun.planner
    assert planner is not None
    observe, under_way = planner.observe, []

    def noting(step: ObservedStep) -> None:
        observe(step)
        under_way.append(planner._wide.awaited)
        assert not (planner._wide.awaited and planner._wide.due)
        assert planner.plan.watched == (planner._wide.due is not None)

    monkeypatch.setattr(planner, "observe", noting)
    answered(begun, REAL)
    assert 3 <= sum(begun.compared) < len(begun.steps) / 10
    assert sum(under_way) < len(under_way) / 2, "each is over when it is known how it went"


def test_texts_that_become_easy_lead_to_longer_drafts() -> None:
    begun = chat(CPU, REAL, ON_CPU, recorded=REAL)
    before = begun.planner.choice if begun.planner else None
    since = len(answered(begun, KNOWN, 7).steps)
    answered(begun, KNOWN, 8, 10)
    costs = costs_of(CPU, LEVEL)
    after = begun.planner.choice if begun.planner else None
    assert before is not None
    assert after is not None
    assert after.length > before.length
    assert not covers(before, after)
    assert begun.speed(since) >= 0.85 * best_speed(KNOWN, costs)


def probed(planner: Planner) -> tuple[BeamShape, StepRecord]:
    """A larger probe, of which a part was verified, and that is told of as a whole later."""
    shape = BeamShape(8, 5, 31)
    whole = Text(*REAL, seed=9).step(shape)
    record = replace(first(whole, 3), watched=True)
    planner.observe(ObservedStep(None, [PLAIN], 1.0, 40, next_shape=shape, next_watched=True))
    planner.observe(ObservedStep(shape, [record], 1.3, 41, drafted_before=shape))
    return shape, whole


def told(planner: Planner, shape: BeamShape, whole: StepRecord, *, texts: int = 1) -> None:
    """How it went, on so many texts that are decoded together."""
    over = WatchedDraft(shape, RecordedDraft.of(whole.tree, whole.path), verified=True)
    planner.observe(ObservedStep(None, [PLAIN], 1.0, 44, watched=[over] * texts))


def test_a_larger_probe_is_learnt_once() -> None:
    planner = chat(CPU, REAL, ON_CPU, recorded=REAL).planner
    assert planner is not None
    seen, trees = planner.acceptance.save()[1].sum(), planner._memory._added
    shape, whole = probed(planner)
    assert planner._memory._added == trees, "a part says less than the whole"
    assert planner.acceptance.save()[1].sum() == seen
    told(planner, shape, whole)
    assert planner._memory._added == trees + 1
    assert planner._memory.trees[-1].tree.parents == whole.tree.parents
    assert planner.acceptance.save()[1].sum() > seen
    assert not planner._wide.awaited


def test_it_is_learnt_once_though_nothing_is_chosen_any_more() -> None:
    planner = chat(CPU, REAL, ON_CPU, recorded=REAL).planner
    assert planner is not None
    made, trees = planner._trials._made, planner._memory._added
    shape = BeamShape(8, 5, 31)
    planner.observe(ObservedStep(None, [PLAIN], 1.0, 40, next_shape=shape, next_watched=True))
    planner._choice.leave(0)
    whole = Text(*REAL, seed=9).step(shape)
    record = replace(whole, watched=True)
    planner.observe(ObservedStep(shape, [record], 3.0, 41, drafted_before=shape))
    assert planner._memory._added == trees
    told(planner, shape, whole, texts=2)
    assert planner._memory._added == trees + 2
    assert planner._trials._made == made + 1, "the step was a trial, what is told of it is none"


def test_a_probe_that_is_due_is_not_made_with_the_first_step_of_an_answer() -> None:
    """Nobody is told of that step."""
    planner = chat(CPU, REAL, ON_CPU, recorded=REAL).planner
    assert planner is not None
    planner._wide.due = BeamShape(8, 5, 31)
    planner.begin()
    assert planner.plan.shape == planner.choice
    assert not planner.plan.watched


@pytest.mark.parametrize("ahead", [ON_CPU, ON_GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize("curve", [CPU, M3, OPENBLAS])
def test_drafts_that_are_never_worth_verifying_are_not_made_for_ever(
    curve: str, ahead: float
) -> None:
    """Nothing of them is accepted, nor rejected; but each takes its time."""
    begun = chat(curve, REAL, ahead, recorded=REAL)
    since = len(begun.steps)
    answered(begun, HOPELESS, 5, 20)
    assert begun.speed(since) >= 0.93 / costs_of(curve, LEVEL).plain[0]
