"""experiments/replayed_drafts.py: a real model's drafts, recorded and played through."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from planning_machines import CPU, costs_of
from scripts import EXPERIMENTS, load_script

from mlx_redrafter import load
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.engine import sequence
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.engine.watch import Watch
from mlx_redrafter.sampling import SamplingConfig
from mlx_redrafter.text.prompts import encode_prompt

POCKET = Path(__file__).resolve().parents[2] / "models" / "pocket"
CHAIN = BeamShape(1, 3)


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sequence, "Watch", Watch)  # what the script changes is put back
    monkeypatch.syspath_prepend(EXPERIMENTS)
    return load_script("replayed_drafts", monkeypatch)


def recorded(script: ModuleType, values: list[list[object]], tokens: int) -> object:
    return script.RecordedText({"tokens": tokens, "drafts": values}).begin()


def test_a_step_makes_what_was_recorded_at_its_place(replayed: ModuleType) -> None:
    # Two levels of two nodes; the text goes along with the second of each.
    tree = [[-1, 0, 0, 2, 2], [0.0, -0.1, -2.0, -2.1, -4.0]]
    text = recorded(replayed, [[2, *tree, [0, 2, 4]], [3, *tree, [0]]], 5)
    assert text.step(BeamShape(2, 2)).drafted == 0, "nothing was recorded at the first place"
    text.advance(1)
    assert text.step(None).drafted == 0
    assert text.step(BeamShape(1, 1)).path == (0,)
    assert text.step(BeamShape(2, 1)).path == (0, 2)
    assert text.step(BeamShape(2, 2)).path == (0, 2, 4)
    text.advance(1)
    assert text.step(BeamShape(2, 2)).path == (0,)


def test_no_step_goes_past_the_end(replayed: ModuleType) -> None:
    chain = [[-1, 0, 1, 2], [0.0, -0.1, -0.2, -0.3], [0, 1, 2, 3]]
    text = recorded(replayed, [[1, *chain]], 2)
    step = text.step(CHAIN)
    assert (step.path, step.cut) == ((0, 1), True)
    played = replayed.fixed([text], CHAIN, costs_of(CPU), alone=1.0)
    assert (played.tokens, played.steps) == (2, 1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_played_is_what_decoding_makes(
    replayed: ModuleType,
    temperature: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    question = "What does list.append do?"
    prompts, drafts = tmp_path / "q.jsonl", tmp_path / "drafts.json"
    prompts.write_text(json.dumps({"turns": [question]}) + "\n", encoding="utf-8")
    words = ["--model", str(POCKET), "--prompts", str(prompts), "--max-tokens", "30"]
    words += ["--temp", str(temperature)]
    monkeypatch.setattr(sys, "argv", ["replayed_drafts.py", "record", str(drafts), *words])
    replayed.main()
    monkeypatch.setattr(sequence, "Watch", Watch)

    values = json.loads(drafts.read_text(encoding="utf-8"))
    text = replayed.RecordedText(values["answers"][0])
    model, tokenizer = load(POCKET, plan=False)
    prompt = encode_prompt(tokenizer, [{"role": "user", "content": question}])
    eos = frozenset(tokenizer.eos_token_ids)
    config = DecodingConfig(
        30, SamplingConfig(temperature, seed=0), beam=CHAIN, eos_token_ids=eos, copy=False
    )
    made = list(decode(model, prompt, config))
    assert text.tokens == len(made) - 1
    # At a temperature noise is followed as far as was learnt, which verifying teaches sooner.
    places = {id(one.step): (at, one.step) for at, one in reversed(list(enumerate(made)))}
    steps = [(at, step) for at, step in places.values() if step is not None and at >= 2]
    assert len(steps) >= 3
    for at, step in steps if temperature == 0 else ():
        text.begin().advance(at - 1)
        assert text.step(CHAIN).path[: len(step.path)] == step.path
        assert text.step(CHAIN).cut or len(text.step(CHAIN).path) == len(step.path)

    monkeypatch.setattr(sys, "argv", ["replayed_drafts.py", "play", str(drafts), "--seeds", "2"])
    capsys.readouterr()
    replayed.main()
    shown = capsys.readouterr().out
    assert "planned" in shown
    assert "over the best" in shown
