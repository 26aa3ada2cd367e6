"""A drafter that cannot be is refused before the target has answered anything."""

from __future__ import annotations

import pytest
from training_files import TINY, write

from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.target.output_head import OutputHead
from mlx_redrafter.training import train_drafter


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"start_from": "there/is/none"}, "there/is/none"),
        ({"draft_vocab_size": 1}, "cannot hold the . special tokens"),
        ({"memory": True, "target_layers": "1,9"}, "has the layers 0 to 1"),
        ({"memory": True, "target_layers": "-1,0"}, "has the layers 0 to 1"),
        ({"shared_rows": True, "exit_dim": 8}, "exit_dim is 8, but shared rows"),
    ],
)
def test_what_no_answer_could_change_is_refused_before_there_are_any(
    bundle, tmp_path, change, words
):
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "the cat"}, {"prompt": "a dog"}])
    settings = {k: v for k, v in TINY.items() if k not in ("exit_dim", "num_draft_layers")}
    out = tmp_path / "out"
    with pytest.raises(RedrafterError, match=words):
        train_drafter(bundle, prompts, out, regenerate=True, **settings, **change)
    assert not (out / "training" / "answers.jsonl").exists()
    assert not (out / "training" / "run.json").exists()


def test_rows_that_cannot_be_shared_are_refused_before_there_are_answers(
    bundle, tmp_path, monkeypatch
):
    monkeypatch.setattr(OutputHead, "plain_module", None)  # as where rows are no layer's
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "the cat"}, {"prompt": "a dog"}])
    out = tmp_path / "out"
    settings = {k: v for k, v in TINY.items() if k != "exit_dim"} | {"shared_rows": True}
    with pytest.raises(RedrafterError, match="so they cannot be shared"):
        train_drafter(bundle, prompts, out, regenerate=True, **settings)
    assert not (out / "training" / "answers.jsonl").exists()
