"""What was recorded of a drafter when it was trained, on its way from the file to the planner."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import bundles
import pytest
from planning_machines import CPU, KNOWN, REAL, costs_of, recorded_of

from mlx_redrafter.conversion import convert
from mlx_redrafter.drafting.recorded import RecordedDraft, RecordedDrafts
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.planning import cost_store
from mlx_redrafter.planning.planner import Planner
from mlx_redrafter.text.drafter_files import (
    load_drafter,
    load_recorded,
    save_drafter,
    save_recorded,
)
from mlx_redrafter.text.loading import load
from mlx_redrafter.tree import HostTree

ONE = {"parents": [0, 0, 1], "scores": [-0.1, -2, -0.3], "accepted": [1, 3]}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return bundles.make_bundle(tmp_path / "tiny")


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    assert load_recorded(tmp_path) is None
    recorded = recorded_of(REAL)
    save_recorded(tmp_path, recorded)
    assert load_recorded(tmp_path) == recorded


def test_what_was_recorded_of_another_drafter_goes_with_it(bundle: Path) -> None:
    save_recorded(bundle / "drafter", recorded_of(REAL, 3))
    save_drafter(bundle / "drafter", load_drafter(bundle / "drafter"))
    assert load_recorded(bundle / "drafter") is None


def test_of_a_step_all_but_its_tokens_is_kept() -> None:
    tree = HostTree((5, 9, 7), (-1, 0, 1), (0.0, -0.123, -1.5))
    assert RecordedDraft.of(tree, [0, 1]) == RecordedDraft(
        HostTree((0, 0, 0), (-1, 0, 1), (0.0, -0.12, -1.5)), (0, 1)
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"parents": [0, 2, 1]},
        {"parents": [0, 0]},
        {"parents": []},
        {"parents": [-1, 0, 1]},
        {"parents": [0, 0, True]},
        {"scores": [0.1, -2, -0.3]},
        {"scores": [float("nan"), -2, -0.3]},
        {"scores": [-(10**400), -2, -0.3]},
        {"scores": "abc"},
        {"accepted": [2, 3]},
        {"accepted": [3]},
        {"accepted": [4]},
        {"accepted": None},
        {"parents": [0, 1, 2], "accepted": []},
    ],
)
def test_what_is_no_recorded_draft_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    path = tmp_path / "recorded_drafts.json"
    for drafts in ([ONE], [ONE, {**ONE, **changes}]):
        path.write_text(json.dumps({"width": 2, "length": 2, "drafts": drafts}), "utf-8")
        if len(drafts) == 1:
            assert load_recorded(tmp_path) is not None
    with pytest.raises(RedrafterError, match=r"recorded_drafts\.json") as caught:
        load_recorded(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"width": 4, "length": 99, "drafts": []}'])
def test_another_file_of_that_name_is_refused(bundle: Path, text: str) -> None:
    (bundle / "drafter" / "recorded_drafts.json").write_text(text, "utf-8")
    with pytest.raises(RedrafterError, match=r"recorded_drafts\.json"):
        load(bundle)


def test_a_loaded_models_planner_has_a_choice_from_the_start(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost_store, "load_costs", lambda model, **options: costs_of(CPU))
    model, _ = load(bundle)
    assert isinstance(model.planner, Planner)
    assert model.planner.choice is None
    save_recorded(bundle / "drafter", recorded_of(KNOWN))
    model, _ = load(bundle)
    assert isinstance(model.planner, Planner)
    assert model.planner.choice is not None
    assert model.planner.for_batch(2).plan.shape is not None


def test_a_converted_drafter_brings_it_along(bundle: Path, tmp_path: Path) -> None:
    recorded = recorded_of(REAL, 3)
    save_recorded(bundle / "drafter", recorded)
    convert(str(bundle), mlx_path=str(tmp_path / "converted"), quantize=True, q_group_size=32)
    assert load_recorded(tmp_path / "converted" / "drafter") == recorded


def test_an_empty_record_says_nothing() -> None:
    empty = replace(recorded_of(REAL), drafts=())
    assert isinstance(empty, RecordedDrafts)
    assert Planner(costs_of(CPU), recorded=empty).choice is None
