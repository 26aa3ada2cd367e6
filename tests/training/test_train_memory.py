"""``train_drafter`` with a head that remembers the text: options, a run, going on from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from training_files import TINY

from mlx_redrafter import load
from mlx_redrafter.drafting.memory_drafter import MemoryDrafter
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.training import TrainingOptions, train_drafter

SETTINGS = {k: v for k, v in TINY.items() if k not in ("exit_dim", "num_draft_layers")}
SETTINGS |= {"memory": True, "state_size": 16, "memory_heads": 2, "memory_head_dim": 8}


def test_a_run_leaves_a_head_that_can_be_gone_on_with(
    bundle: Path, data: Path, tmp_path: Path
) -> None:
    report = train_drafter(bundle, data, tmp_path / "one", **SETTINGS)
    assert report.decoded.tokens_per_step >= 1
    card = json.loads((tmp_path / "one" / "training.json").read_text())
    assert card["features"] == "texts in memory"
    assert card["drafter"]["target_layers"] == [0, 1]
    more = {k: v for k, v in SETTINGS.items() if k in TINY}
    train_drafter(bundle, data, tmp_path / "two", start_from=str(tmp_path / "one"), **more)
    for change in ({"features": "disk"}, {"cache_features": tmp_path / "cache"}):
        with pytest.raises(RedrafterError, match="nothing is kept on disk: leave out features"):
            train_drafter(
                bundle, data, tmp_path / "x", start_from=str(tmp_path / "one"), **more, **change
            )
    model, _ = load(bundle, drafter=tmp_path / "two")
    assert isinstance(model.drafter, MemoryDrafter)
    assert model.drafter.config.state_size == 16
    prompt = [5, 9, 3, 8]
    texts = [
        [one.token for one in decode(model, prompt, DecodingConfig(12, draft=drafts))]
        for drafts in (True, False)
    ]
    assert texts[0] == texts[1]


def test_epochs_count_texts(bundle: Path, data: Path, tmp_path: Path) -> None:
    train_drafter(bundle, data, tmp_path / "whole", **SETTINGS | {"epochs": 1.0, "steps": None})
    card = json.loads((tmp_path / "whole" / "training.json").read_text())
    assert card["training"]["steps"] > 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"memory": False}, "pass memory as well"),
        ({"lookback": 2}, "has no lookback"),
        ({"shared_rows": True}, "has no shared_rows"),
        ({"num_draft_layers": 3}, "has no num_draft_layers"),
        ({"rnn": False}, "has no rnn"),
        ({"features": "disk"}, "leave out features"),
        ({"target_layers": "early"}, "has to be numbers, such as 2,14"),
        ({"target_layers": "1,0"}, "name each once, in order"),
        ({"memory_head_dim": 3}, "a whole number from 4"),
        ({"memory_window": 0}, "a whole number from 1"),
    ],
)
def test_options_that_do_not_go_together(change: dict[str, object], words: str) -> None:
    with pytest.raises(RedrafterError, match=words):
        TrainingOptions(**{"model": "m", "data": "d", "output": "o", **SETTINGS, **change})


def test_layers_that_the_target_lacks(bundle: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(RedrafterError, match="1,9, but this model has the layers 0 to 1: name"):
        train_drafter(bundle, data, tmp_path, **SETTINGS, target_layers="1,9")
