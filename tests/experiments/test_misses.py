"""experiments/misses.py: drafts from every place of an answer."""

from pathlib import Path
from types import ModuleType

import pytest
from scripts import load_script

from mlx_redrafter import load
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.sampling import SamplingConfig
from mlx_redrafter.text.prompts import encode_prompt

POCKET = Path(__file__).resolve().parents[2] / "models" / "pocket"
LENGTH = 5


@pytest.fixture
def misses(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_script("misses", monkeypatch)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_drafts_are_those_of_decoding(misses: ModuleType, temperature: float) -> None:
    model, tokenizer = load(POCKET, plan=False)
    question = [{"role": "user", "content": "Tell me about np.frobnicate."}]
    prompt = encode_prompt(tokenizer, question)
    sampling = SamplingConfig(temperature=temperature, seed=3)
    eos = set(tokenizer.eos_token_ids)
    said = misses.answer(model, prompt, sampling, 40, eos)
    found = misses.places(model, prompt, said, sampling, LENGTH)
    beam = BeamShape(1, LENGTH)
    config = DecodingConfig(40, sampling, beam=beam, eos_token_ids=frozenset(eos))
    made = [(token.token, token.step) for token in decode(model, prompt, config)]
    assert [token for token, _ in made] == said
    starts = {id(step): (step, place) for place, (_, step) in reversed(list(enumerate(made)))}
    drafted = [(step, place - 1) for step, place in starts.values() if step is not None]
    as_decoded = found.accepted[misses.AS_DECODED]
    assert len(drafted) == misses.steps(as_decoded)
    for step, place in drafted:
        assert as_decoded[place] == min(step.accepted, len(found) - place)
    assert (misses.FOLLOWING in found.accepted) == (temperature > 0)
    assert any(found.flipped_by_noise) == (temperature > 0)


def test_steps_and_times_of_an_answer(misses: ModuleType) -> None:
    accepted = [2, 0, 0, 0, 1, 0]
    # From the first place three tokens, then one, then two.
    assert misses.steps(accepted) == 3
    assert misses.paused_time(accepted, 1.0) == 3.0
    # Knowing it all, only the first draft is worth two plain steps.
    assert misses.least_time(accepted, 2.0) == 5.0
    assert misses.least_time(accepted, 1.0) == 3.0


def test_pauses_save_time_where_drafts_fail(misses: ModuleType) -> None:
    assert misses.paused_time([0] * 50, 2.0) < 80 < 2.0 * misses.steps([0] * 50)


def test_likeliest_tokens_are_accepted_up_to_a_swayed_one(misses: ModuleType) -> None:
    assert misses.unswayed([False, False, True, False], 2) == [2, 1, 0, 1]
