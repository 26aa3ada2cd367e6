"""A run whose log was lost on the way ends all the same."""

from __future__ import annotations

import json

import pytest
from training_files import TINY, weights

from mlx_redrafter.training import TrainingCallback, TrainingOptions, train_drafter
from mlx_redrafter.ui.cli.train_screen import show_report


class Notes(TrainingCallback):
    """Keeps what is noted; interrupts a run at a step."""

    def __init__(self, stop: int | None = None):
        self.notes: list[str] = []
        self._stop = stop

    def note(self, text):
        self.notes.append(text)

    def stage(self, name, done, total):
        if name == "training" and done == self._stop:
            raise KeyboardInterrupt


@pytest.mark.parametrize("lost", ["all", "the best"])
def test_a_lost_log_costs_the_figures_and_not_the_drafter(bundle, data, tmp_path, capsys, lost):
    # Steps so small that the first evaluation, the one whose report is lost, stays the best.
    settings = {**TINY, "learning_rate": 1e-12, "eval_every": 2}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    report = train_drafter(bundle, data, whole, **settings)
    with pytest.raises(KeyboardInterrupt):
        train_drafter(bundle, data, parts, callback=Notes(7), **settings)
    log = parts / "training" / "log.jsonl"
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    kept = [] if lost == "all" else [e for e in entries if e["step"] != report.best_step]
    log.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
    ears = Notes()
    after = train_drafter(bundle, data, parts, callback=ears, resume=True, **settings)
    assert weights(parts) == weights(whole)
    assert (after.steps, after.best_step) == (report.steps, report.best_step)
    assert report.decoded is not None
    assert (after.decoded, after.held_out) == (None, None)
    assert any("lacks the evaluation at step" in note for note in ears.notes)
    card = json.loads((parts / "training.json").read_text())
    assert card["figures"]["decoded"] is None
    show_report(after, TrainingOptions(model=str(bundle), data=str(data)))
    assert f"Step {after.best_step} of {after.steps}" in capsys.readouterr().out
