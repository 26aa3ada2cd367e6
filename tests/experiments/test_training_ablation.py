"""The script behind the table of docs/training.md, on a tiny target."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from bundles import make_bundle
from scripts import load_script
from training_files import chats, write


@pytest.fixture
def script(monkeypatch):
    return load_script("training_ablation", monkeypatch)


def test_each_row_is_trained_once_and_measured(script, tmp_path, monkeypatch, capsys):
    questions = [{"question": c["messages"][0]["content"]} for c in chats(2)]
    subject = replace(
        script.SUBJECTS["pocket"],
        model=make_bundle(tmp_path / "m", drafter=False),
        train=write(tmp_path / "train.jsonl", chats(6)),
        valid=write(tmp_path / "valid.jsonl", chats(3)),
        prompts=write(tmp_path / "questions.jsonl", questions),
        draft_vocab_size=64,
        answer_tokens=8,
        answer_temperatures=(0.0, 1.0),
    )
    monkeypatch.setattr(script, "SUBJECTS", {"tiny": subject})
    tiny = replace(script.QUICK, steps=2, positions=16, max_tokens=4)
    monkeypatch.setattr(script, "QUICK", tiny)
    monkeypatch.setattr(script, "ROOT", tmp_path)
    out = tmp_path / "out"
    asked = ["--quick", "--output", str(out), "--only", "hard", "--only", "base"]
    asked += ["--only", "independent", "--only", "full"]
    assert script.main(asked) == 0
    table = (out / "tiny" / "table.md").read_text()
    titles = [row.title for row in script.ROWS if row.name in asked]
    assert [line.split(" | ")[0][2:] for line in table.splitlines()[2:]] == titles
    results = json.loads((out / "tiny" / "results.json").read_text())
    assert all(figures["greedy"]["tokens_per_step"] >= 1 for figures in results.values())
    own = [json.loads(line) for line in (out / "tiny" / "own" / "train.jsonl").open()]
    assert [r["messages"][0] for r in own] == [r["messages"][0] for r in chats(6)]
    monkeypatch.setattr(script, "train_drafter", None)
    assert script.main([*asked[:3], "--only", "full"]) == 0  # the others stay in the table
    assert (out / "tiny" / "table.md").read_text() == table
    capsys.readouterr()
    for flag in ("--steps", "--records"):
        assert script.main([*asked, flag, "3"]) == 2
        assert f"another budget ({flag[2:]})" in capsys.readouterr().err
    assert (out / "tiny" / "table.md").read_text() == table
    assert script.main([*asked[:3], "--only", "full", "--prompts", "1", "--max-tokens", "3"]) == 0
    measured = json.loads((out / "tiny" / "results.json").read_text())
    assert list(measured) == ["full"]  # measured otherwise, the others would not compare
    assert measured["full"]["asked"] == {"prompts": 1, "max_tokens": 3}
    assert measured["full"]["greedy"]["prompts"] == 1
    for flag in ("--steps", "--records", "--prompts", "--max-tokens"):
        with pytest.raises(SystemExit):
            script.main([*asked, flag, "0"])
        assert "at least 1" in capsys.readouterr().err
