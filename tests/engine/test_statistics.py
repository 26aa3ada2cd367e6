from __future__ import annotations

import json

import pytest

from mlx_redrafter.engine.statistics import AcceptanceStats


def test_nothing_yet() -> None:
    stats = AcceptanceStats()
    assert stats.tokens_per_step == 0.0
    assert stats.acceptance_by_depth == []


def test_one_step() -> None:
    """Two candidates at depth 1, two at 2, one at 3; two accepted, then the target's own token."""
    stats = AcceptanceStats()
    stats.record([1, 1, 2, 2, 3], accepted=2, emitted=3)
    assert (stats.steps, stats.drafted, stats.accepted, stats.tokens) == (1, 5, 2, 3)
    assert stats.trials_by_depth == [1, 1, 1]
    assert stats.accepted_by_depth == [1, 1, 0]
    assert stats.acceptance_by_depth == [1.0, 1.0, 0.0]
    assert stats.histogram == [0, 0, 1]
    assert (stats.last_drafted, stats.last_accepted) == (5, 2)
    assert stats.tokens_per_step == 3.0


def test_the_targets_own_token_never_counts_as_accepted() -> None:
    stats = AcceptanceStats()
    for _ in range(4):
        stats.record([1, 2], accepted=0, emitted=1)
    assert (stats.accepted, stats.tokens, stats.tokens_per_step) == (0, 4, 1.0)
    assert stats.acceptance_by_depth == [0.0, 0.0]
    assert stats.histogram == [4]


def test_plain_steps_have_no_trials() -> None:
    stats = AcceptanceStats()
    stats.record([], accepted=0, emitted=1)
    assert (stats.drafted, stats.trials_by_depth, stats.histogram) == (0, [], [1])
    stats.record([1], accepted=0, emitted=1)
    assert (stats.steps, stats.plain_steps) == (2, 1)


def test_a_step_cut_off_is_no_trial_below_the_cut() -> None:
    """The text ended with the first accepted token: nobody knows about depths 2 and 3."""
    stats = AcceptanceStats()
    stats.record([1, 2, 3], accepted=1, emitted=1)
    assert stats.trials_by_depth == [1]
    assert stats.accepted_by_depth == [1]
    assert (stats.tokens, stats.histogram) == (1, [0, 1])


def test_a_step_that_accepted_all_is_a_trial_at_all_depths() -> None:
    stats = AcceptanceStats()
    stats.record([1, 2, 3], accepted=3, emitted=4)
    stats.record([1, 2, 3], accepted=1, emitted=2)
    assert stats.trials_by_depth == [2, 2, 2]
    assert stats.accepted_by_depth == [2, 1, 1]
    assert stats.acceptance_by_depth == [1.0, 0.5, 0.5]


def test_depths_in_any_order() -> None:
    stats = AcceptanceStats()
    stats.record([3, 1, 2], accepted=0, emitted=1)
    assert stats.trials_by_depth == [1, 1, 1]


def test_merge_is_as_if_recorded_together() -> None:
    steps = [([1, 2, 3], 2, 3), ([1], 0, 1), ([], 0, 1), ([1, 2, 3, 4], 4, 5), ([1, 2], 1, 1)]
    together, one, other = AcceptanceStats(), AcceptanceStats(), AcceptanceStats()
    for index, step in enumerate(steps):
        for stats in (together, one if index < 2 else other):
            stats.record(*step, seconds=0.75, draft_seconds=0.5)
    one.merge(other)
    assert one == together
    assert (one.draft_seconds, one.verify_seconds, one.seconds) == (2.5, 1.25, 3.75)


def test_a_step_takes_no_less_than_its_draft_alone() -> None:
    """Measured alone, a draft may take longer than all of the step that it was part of."""
    stats = AcceptanceStats()
    stats.record([1], accepted=1, emitted=2, seconds=0.25, draft_seconds=0.5)
    assert (stats.draft_seconds, stats.verify_seconds) == (0.5, 0.0)


def test_a_snapshot_stands_still() -> None:
    stats = AcceptanceStats()
    stats.record([1, 2], accepted=1, emitted=2)
    before = stats.snapshot()
    assert before == stats
    stats.record([1, 2], accepted=2, emitted=3)
    assert (before.steps, before.histogram, before.accepted_by_depth) == (1, [0, 1], [1, 0])


def test_dictionary_goes_through_json() -> None:
    stats = AcceptanceStats()
    stats.record([1, 2], accepted=1, emitted=2)
    values = json.loads(json.dumps(stats.to_dict()))
    assert values["tokens_per_step"] == 2.0
    assert values["acceptance_by_depth"] == [1.0, 0.0]
    for name in ("steps", "plain_steps", "drafted", "accepted", "tokens", "histogram"):
        assert values[name] == getattr(stats, name)
    values["histogram"].append(9)
    assert stats.histogram == [0, 1]


@pytest.mark.parametrize("name", ["histogram", "trials_by_depth", "accepted_by_depth"])
def test_new_counts_share_no_lists(name: str) -> None:
    one = AcceptanceStats()
    one.record([1, 2], accepted=1, emitted=2)
    assert getattr(AcceptanceStats(), name) == []
