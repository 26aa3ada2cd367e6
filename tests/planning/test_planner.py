"""The planner against synthetic machines: what it picks, and that it never costs much."""

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest

from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.engine.backoff import DraftBackoff
from mlx_redrafter.engine.shape_planner import ObservedStep
from mlx_redrafter.engine.step import StepRecord
from mlx_redrafter.planning import calibration
from mlx_redrafter.planning.costs import CostModel
from mlx_redrafter.planning.planner import (
    CANDIDATES,
    CHAIN_CANDIDATES,
    CHAIN_PROBES,
    FIRST_PROBES,
    PROBES,
    Planner,
)
from mlx_redrafter.tree import HostTree, accept
from mlx_redrafter.ui.cli.plan_view import verdict

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def costs(token_share: float, level: float = 0.05) -> CostModel:
    """Costs in units of a plain step: each further token adds ``token_share``."""
    row = tuple(1.0 + token_share * (size - 1) for size in SIZES)
    draft = {1: level, 4: 1.5 * level, 8: 2 * level}
    return CostModel(SIZES, (64,), (row,), draft, (1.0,))


class Machine:
    """Draws trees and outcomes for any shape: a drafter with given confidence and truth.

    Args:
        confidence: Probability that the drafter gives its favourite token.
        truth: Chance that the favourite really is the target's choice.
    """

    def __init__(self, confidence: float, truth: float, seed: int = 0):
        self._confidence, self._truth = confidence, truth
        self._rng = random.Random(seed)

    def step(self, shape: BeamShape) -> StepRecord:
        tokens, parents, scores = [0], [-1], [0.0]
        beams = [0]
        for _ in range(shape.length):
            grown = []
            for beam in beams:
                rest = (1 - self._confidence) / 8
                for rank in range(shape.width):
                    chance = self._confidence if rank == 0 else rest
                    grown.append((scores[beam] + math.log(chance), rank, beam))
            grown.sort(reverse=True)
            beams = []
            for score, rank, beam in grown[: shape.width]:
                beams.append(len(tokens))
                tokens.append(rank)
                parents.append(beam)
                scores.append(score)
        order = [0, *sorted(range(1, len(tokens)), key=lambda n: -scores[n])[: shape.nodes]]
        place = {old: new for new, old in enumerate(order)}
        tree = HostTree(
            tuple(tokens[n] for n in order),
            tuple(place.get(parents[n], -1) for n in order),
            tuple(scores[n] for n in order),
        )
        choices = tuple(0 if self._rng.random() < self._truth else 99 for _ in order)
        return StepRecord(tree, choices, tuple(accept(tree.tokens, tree.parents, choices)))


PLAIN = StepRecord(HostTree((0,), (-1,), (0.0,)), (1,), (0,))


def run(planner: Planner, machine: Machine, truth: CostModel, tokens: int) -> tuple[float, int]:
    """Time and tokens of a text of at least ``tokens`` tokens, by the true costs."""
    spent, made = 0.0, 0
    while made < tokens:
        shape = planner.next_shape(made)
        record = PLAIN if shape is None else machine.step(shape)
        rejected = float(record.accepted < record.drafted)
        seconds = truth.step_seconds(shape, made, kept=len(record.path), rejected=rejected)
        emitted = record.accepted + 1
        planner.observe(ObservedStep(shape, [record], seconds, made))
        spent += seconds
        made += emitted
    return spent, made


@pytest.mark.parametrize("token_share", [0.0, 0.02, 0.3, 1.0])
@pytest.mark.parametrize(("confidence", "truth"), [(0.9, 0.9), (0.9, 0.0), (0.12, 0.0), (0.5, 0.5)])
def test_never_much_slower_than_plain(token_share: float, confidence: float, truth: float) -> None:
    machine = costs(token_share)
    planner = Planner(machine)
    spent, made = run(planner, Machine(confidence, truth), machine, 4000)
    assert made / spent >= 0.97  # a plain step takes 1 and makes 1


def test_cheap_tokens_and_a_good_drafter_draft_far() -> None:
    machine = costs(0.005, level=0.01)
    planner = Planner(machine)
    spent, made = run(planner, Machine(0.95, 0.95), machine, 2000)
    assert planner.choice is not None
    assert planner.choice.length >= 5
    assert made / spent > 3


@pytest.mark.parametrize("dearer", [1.0, 1.1, 1.2, 1.3, 1.4])
def test_a_good_drafter_drafts_far_where_the_draft_is_the_dear_part(dearer: float) -> None:
    """As beside a model of a few megabytes."""
    row = tuple(dearer * (1.3 + 0.05 * (size - 1)) for size in SIZES)
    draft = {1: 0.12 * dearer, 2: 0.22 * dearer, 4: 0.26 * dearer, 8: 0.33 * dearer}
    machine = CostModel(SIZES, (64,), (row,), draft, (1.0,))
    planner = Planner(machine)
    run(planner, Machine(0.99, 0.99), machine, 2000)
    assert planner.choice == BeamShape(1, 15)


def test_a_token_that_costs_a_step_leaves_plain() -> None:
    machine = costs(1.0)
    planner = Planner(machine)
    run(planner, Machine(0.6, 0.6), machine, 600)
    assert planner.choice is None


def test_a_drafter_that_overrates_itself_is_found_out() -> None:
    machine = costs(0.02)
    planner = Planner(machine)
    run(planner, Machine(0.95, 0.05), machine, 1500)
    assert planner.choice is None


def test_drafting_comes_back_when_it_pays_again() -> None:
    machine = costs(0.02)
    planner = Planner(machine)
    run(planner, Machine(0.9, 0.0), machine, 600)
    assert planner.choice is None
    run(planner, Machine(0.9, 0.9), machine, 8000)
    assert planner.choice is not None


def test_measured_time_corrects_the_stored_costs() -> None:
    believed = costs(0.0, level=0.0)
    slow_drafts = replace(believed, draft={1: 3.0, 4: 3.0, 8: 3.0})
    planner = Planner(believed)
    run(planner, Machine(0.6, 0.6), slow_drafts, 3000)
    assert planner.choice is None


def test_the_first_step_of_a_kind_is_not_timed() -> None:
    """It may have waited for a compiler."""
    planner = Planner(costs(0.1))
    before = planner.forecasts(0)[0].step_seconds
    planner.observe(ObservedStep(None, [PLAIN], 1000.0, 0))
    assert planner.forecasts(0)[0].step_seconds == before
    planner.observe(ObservedStep(None, [PLAIN], 1000.0, 0))
    assert planner.forecasts(0)[0].step_seconds > before


def test_plain_decoding_leads_the_forecasts() -> None:
    forecasts = Planner(costs(0.1)).forecasts(100)
    assert forecasts[0].shape is None
    assert forecasts[0].tokens_per_second == pytest.approx(1.0)
    assert [forecast.shape for forecast in forecasts[1:]] == list(CANDIDATES)


def test_candidates_fit_into_the_probe() -> None:
    for shape in CANDIDATES:
        assert shape.width <= PROBES[0].width
        assert shape.length <= PROBES[0].length
        assert shape.nodes <= PROBES[0].nodes


def test_long_chains_are_found_where_they_pay() -> None:
    machine = costs(0.03, level=0.005)
    planner = Planner(machine)
    run(planner, Machine(0.98, 0.98), machine, 1500)
    assert planner.choice == BeamShape(1, 15)


def test_giving_up_is_told_only_after_a_trial() -> None:
    machine = costs(1.0)
    planner = Planner(machine)
    assert not planner.drafting_disabled
    assert planner.undecided
    run(planner, Machine(0.6, 0.1), machine, 200)
    assert planner.drafting_disabled
    assert not planner.undecided


def test_a_plan_that_is_not_made_yet_is_called_so() -> None:
    """A short answer may end before the first drafts are judged."""
    machine = costs(0.02)
    planner = Planner(machine)
    text = Machine(0.95, 0.95)
    for steps in range(1, FIRST_PROBES - 1):
        converse(planner, machine, text, 1)
        assert planner._probes_left == FIRST_PROBES - steps
        assert planner.undecided
        assert not planner.drafting_disabled
        assert "nothing is chosen yet" in verdict(planner, 64).plain
    converse(planner, machine, text, 3)
    assert not planner.undecided
    assert "Drafting pays here" in verdict(planner, 64).plain


def run_together(planner: Planner, machine: Machine, truth: CostModel, texts: int) -> None:
    """300 steps of a batch, by the true costs."""
    batch, together = truth.for_batch(texts), planner.for_batch(texts)
    for context in range(300):
        shape = together.next_shape(context)
        records = [PLAIN if shape is None else machine.step(shape) for _ in range(texts)]
        together.observe(ObservedStep(shape, records, batch.step_seconds(shape, context), context))


def test_a_batch_has_costs_of_its_own_and_shares_what_is_learnt() -> None:
    """Eight texts together gain nothing here; those left over, alone, do."""
    machine = costs(0.4)
    planner = Planner(machine)
    text = Machine(confidence=0.8, truth=0.8)
    run_together(planner, text, machine, 8)
    eight = planner.for_batch(8)
    assert eight.choice is None
    assert eight.acceptance is planner.acceptance
    assert planner.for_batch(1) is planner
    for texts in (2, 1):
        run_together(planner, text, machine, texts)
    assert planner.choice is not None
    assert planner.for_batch(8) is eight


def test_a_step_is_one_observation_however_many_texts() -> None:
    """Time counts once, trees count each, and the first probes are soon over."""
    machine = costs(0.02)
    together = Planner(machine).for_batch(6)
    expected = together.costs.step_seconds(together.probe, 0)
    assert together.next_shape(0) == together.probe
    records = [Machine(0.9, 0.9, seed).step(together.probe) for seed in range(6)]
    together.observe(ObservedStep(together.probe, records, 2 * expected, 0))
    drafted = together.forecasts(0)[1:]
    fresh = Planner(machine.for_batch(6))
    fresh.observe(ObservedStep(fresh.probe, records[:1], 2 * expected, 0))
    assert fresh._drift == together._drift
    assert max(forecast.tokens_per_step for forecast in drafted) > 1
    assert fresh.next_shape(0) == fresh.probe
    assert len(together._trees) == 6
    assert together._probes_left == 0


def asked(planner: Planner, backoff: DraftBackoff, context: int) -> BeamShape | None:
    """The next shape of a text, as the loop takes it."""
    shape = planner.next_shape(context)
    return None if shape is not None and not planner.probing and backoff.take() else shape


def told(planner: Planner, backoff: DraftBackoff, step: ObservedStep) -> None:
    """A step is over."""
    planner.observe(step)
    price = planner.price(step)
    if price is not None:
        backoff.drafted(price, step.tokens)


def decoded(
    planner: Planner, machine: CostModel, text: Machine, steps: int
) -> Iterator[BeamShape | None]:
    """A text's shapes as the loop takes them: behind a plain step asked for before it is read."""
    backoff = DraftBackoff()
    shape = asked(planner, backoff, 0)
    for context in range(steps):
        record = PLAIN if shape is None else text.step(shape)
        following = asked(planner, backoff, context) if shape is None else None
        seconds = machine.step_seconds(shape, context)
        told(planner, backoff, ObservedStep(shape, [record], seconds, context))
        yield shape
        shape = asked(planner, backoff, context) if shape is not None else following


def test_a_trial_is_one_step() -> None:
    machine = costs(1.0)
    planner = Planner(machine)
    text = Machine(0.6, 0.1)
    steps = list(decoded(planner, machine, text, 1500))
    drafted = [shape is not None for shape in steps]
    assert sum(drafted[:10]) == FIRST_PROBES
    later = drafted[10:]
    assert any(later)
    assert not any(a and b for a, b in pairwise(later))


def converse(planner: Planner, machine: CostModel, text: Machine, steps: int) -> int:
    """One text as the loop decodes it; returns how many steps were probes."""
    return sum(shape == planner.probe for shape in decoded(planner, machine, text, steps))


def test_probes_that_are_never_drafted_are_not_used_up() -> None:
    """The loop asks before it knows that a text ends; answers of one token draft nothing."""
    machine = costs(0.02)
    planner = Planner(machine)
    for _ in range(50):
        planner.next_shape(10)
    assert not planner.drafting_disabled
    assert converse(planner, machine, Machine(0.9, 0.9), 20) == FIRST_PROBES
    assert planner.choice is not None


def test_probes_become_rare_while_they_change_nothing() -> None:
    machine = costs(0.02)
    planner = Planner(machine)
    converse(planner, machine, Machine(0.95, 0.95), 200)
    assert planner.choice not in (None, planner.probe)
    assert converse(planner, machine, Machine(0.95, 0.95, 1), 4000) < 16


def stretches(
    planner: Planner, machine: CostModel, lengths: int, backoff: type[DraftBackoff] = DraftBackoff
) -> tuple[float, int, int]:
    """Texts whose first half the drafter knows and whose second it does not.

    Returns:
        (time, tokens, drafts in the second halves)
    """
    known, unknown = Machine(0.95, 0.97), Machine(0.95, 0.05, 1)
    spent, made, failing = 0.0, 0, 0
    for _ in range(40):
        own, written = backoff(), 0
        while written < lengths:
            hard = written >= lengths // 2
            shape = asked(planner, own, written)
            record = PLAIN if shape is None else (unknown if hard else known).step(shape)
            seconds = machine.step_seconds(shape, written)
            told(planner, own, ObservedStep(shape, [record], seconds, written))
            written += len(record.path)
            spent, failing = spent + seconds, failing + (hard and shape is not None)
        made += written
    return spent, made, failing


def test_drafts_pause_where_a_text_is_unlike_the_rest() -> None:
    """The choice stands, since drafts pay on the whole, but hard places go plain for a while."""
    machine = costs(0.08, level=0.005)
    spent, made, failing = stretches(Planner(machine), machine, 80)

    class Eager(DraftBackoff):
        def take(self) -> bool:
            return False

    slow, slow_made, slow_failing = stretches(Planner(machine), machine, 80, Eager)
    assert failing < slow_failing / 3
    assert made / spent > 1.25 * slow_made / slow


def test_a_pause_is_not_taken_for_giving_up() -> None:
    machine = costs(0.08, level=0.005)
    planner = Planner(machine)
    converse(planner, machine, Machine(0.95, 0.97), 60)
    assert planner.choice is not None
    drafted = list(decoded(planner, machine, Machine(0.95, 0.0), 12))
    assert None in drafted
    assert planner.choice is not None
    assert not planner.drafting_disabled
    assert planner._trial_steps == planner._steps_to_trial  # none of its steps count towards one
    assert planner.next_shape(0) is not None


def test_rows_that_come_in_blocks_are_filled() -> None:
    """Where sixteen rows cost less than twelve, as in OpenBLAS, it is sixteen that are checked."""
    blocks = {size: 1.0 + 0.15 * (size - 1) for size in SIZES} | {8: 1.8, 16: 1.4}
    machine = replace(costs(0.0, level=0.01), verify=(tuple(blocks.values()),))
    planner = Planner(machine)
    run(planner, Machine(0.93, 0.93), machine, 1500)
    assert planner.choice is not None
    assert planner.choice.nodes == 15


def test_every_shape_makes_as_many_rows_as_were_timed() -> None:
    assert {1 + shape.nodes for shape in CANDIDATES} < set(calibration.SIZES)
    assert {1 + shape.nodes for shape in PROBES} < set(calibration.SIZES)


def test_what_comes_before_the_first_level_is_paid_once_a_draft() -> None:
    machine = replace(costs(0.0, level=0.1), draft_start=0.5)
    assert machine.draft_seconds(BeamShape(1, 1)) == pytest.approx(0.6)
    assert machine.draft_seconds(BeamShape(1, 12)) == pytest.approx(1.7)
    assert machine.for_batch(2).draft_start == 0.5
    assert CostModel.from_dict(machine.to_dict()) == machine


def test_costs_of_very_large_batches() -> None:
    """A beam for each text, wider together than any one beam may be."""
    machine = costs(0.02)
    many = machine.for_batch(400)
    assert many.draft_seconds(BeamShape(8, 2)) == pytest.approx(400 * machine.draft[8] * 2)
    assert many.verify_seconds(1, 0) == pytest.approx(400 / 64 * machine.verify_seconds(64, 0))


def test_a_replay_makes_long_chains_dearer() -> None:
    """What a rejected tail costs counts by the chance that there is one, and only for drafts."""
    free = costs(0.1)
    dear = replace(free, replay=0.9)
    shape = BeamShape(1, 5)
    plain = dear.step_seconds(shape, 0)
    assert plain == dear.step_seconds(shape, 0, kept=6, rejected=0.0) == free.step_seconds(shape, 0)
    assert dear.step_seconds(shape, 0, kept=3, rejected=0.5) == pytest.approx(
        plain + 0.5 * 0.9 * dear.verify_seconds(3, 0)
    )
    assert dear.step_seconds(None, 0, rejected=1.0) == free.step_seconds(None, 0)
    assert CostModel.from_dict(dear.to_dict()) == dear
    lengths = []
    planner = Planner(free, CHAIN_CANDIDATES, CHAIN_PROBES)
    run(planner, Machine(confidence=0.75, truth=0.75), free, 1500)
    for machine in (free, dear):
        planner.costs = machine
        by_shape = {forecast.shape: forecast for forecast in planner.forecasts(0)}
        best = max(by_shape.values(), key=lambda forecast: forecast.tokens_per_second).shape
        lengths.append(best.length if best else 0)
        short = by_shape[BeamShape(1, 1)].step_seconds
        extra = machine.replay * 0.25  # the one token is rejected a quarter of the time
        assert short == pytest.approx(machine.step_seconds(BeamShape(1, 1), 0) + extra, abs=0.1)
        added = [
            by_shape[shape].step_seconds / planner._drift[False] - machine.step_seconds(shape, 0)
            for shape in CHAIN_CANDIDATES
        ]
        if machine.replay:
            assert all(b > a - 1e-9 for a, b in pairwise(added))  # rows that stay are whole
            assert added[-1] > 2 * added[0]
        else:
            assert added == pytest.approx([0.0] * len(added))
    assert lengths[1] < lengths[0]


def score_tree(*log_probs: float) -> HostTree:
    """A chain with these cumulative scores."""
    n = 1 + len(log_probs)
    return HostTree((0,) * n, tuple(range(-1, n - 1)), (0.0, *log_probs))


def settled(token_share: float = 0.1, level: float = 0.005) -> Planner:
    """A planner that has chosen, and whose machine the drafter knows well."""
    planner = Planner(costs(token_share, level))
    run(planner, Machine(0.9, 0.9), planner.costs, 400)
    assert planner.choice is not None
    return planner


def test_cheap_drafts_are_made_ahead() -> None:
    assert settled(level=0.005).drafts_next
    assert not settled(level=0.1).drafts_next


def test_of_a_doubtful_draft_less_is_verified() -> None:
    planner = settled()
    shape = BeamShape(1, 7)
    sure = planner.num_nodes_to_verify(shape, score_tree(*(-0.01 * n for n in range(1, 8))), 0)
    doubtful = planner.num_nodes_to_verify(
        shape, score_tree(-0.01, -0.02, *(-6.0 - n for n in range(5))), 0
    )
    hopeless = planner.num_nodes_to_verify(shape, score_tree(*(-7.0 - n for n in range(7))), 0)
    assert hopeless < doubtful < sure == 7
    assert {1 + hopeless, 1 + doubtful} <= set(SIZES)


def test_a_probe_is_verified_whole() -> None:
    planner = Planner(costs(0.1, 0.005))
    hopeless = score_tree(*(-7.0 - n for n in range(31)))
    assert planner.next_shape(0) == planner.probe
    assert planner.num_nodes_to_verify(planner.probe, hopeless, 0) == 31
    planner.observe(ObservedStep(planner.probe, [Machine(0.9, 0.9).step(planner.probe)], 1.0, 0))
    assert planner.num_nodes_to_verify(planner.probe, hopeless, 0) == 31
    # One that was drafted after the last that was needed is a draft like any other.
    planner = settled()
    assert planner.num_nodes_to_verify(planner.probe, hopeless, 0) < 31
