"""What an error of the caller's within a step leaves of a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from thread_texts import PROMPTS, config_of, model_of, single

from mlx_redrafter.engine.batch import Engine
from mlx_redrafter.engine.events import NewToken


def failing(calls: int) -> Callable[[Any, Any], Any]:
    """A logits processor that fails when it is called for the so-manieth time."""
    left = iter(range(calls - 1))

    def process(_tokens: Any, logits: Any) -> Any:
        if next(left, None) is None:
            raise KeyError("the caller's own")
        return logits

    return process


@pytest.mark.parametrize("name", ["llama", "llama+memory", "qwen3_next"])
@pytest.mark.parametrize("draft", [True, False])
@pytest.mark.parametrize("calls", [1, 2, 4])
def test_an_error_in_a_step_ends_all_texts(name: str, draft: bool, calls: int) -> None:
    """None goes on without tokens that were made in that step, and none keeps an engine busy."""
    model, config = model_of(name), config_of(draft=draft, temperature=1.0)
    expected = single(model, config_of(draft=False, temperature=1.0))
    kept: list[Any] = []
    engine = Engine(model, keep=kept.append)
    failed = replace(config, logits_processors=(failing(calls),))
    numbers = [engine.add(p, failed if p is PROMPTS[1] else config) for p in PROMPTS]
    texts: dict[int, list[int]] = {number: [] for number in numbers}

    def decode_all() -> None:
        while engine.busy:
            for event in engine.step():
                if isinstance(event, NewToken):
                    texts[event.sequence].append(event.decoded.token)

    with pytest.raises(KeyError, match="the caller's own"):
        decode_all()
    assert not engine.busy
    for text, whole in zip(texts.values(), expected, strict=True):
        assert text == whole[: len(text)]
    # Others may begin, and what is kept of them is their own.
    again = [engine.add(prompt, config) for prompt in PROMPTS]
    texts.update((number, []) for number in again)
    before = len(kept)
    decode_all()
    assert [texts[number] for number in again] == expected
    ends = {(*p, *text[:-1]) for p, text in zip(PROMPTS, expected, strict=True)}
    assert {tuple(cache.tokens) for cache in kept[before:]} == ends
