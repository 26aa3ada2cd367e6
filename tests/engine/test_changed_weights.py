"""A cache that is kept while a model's weights are replaced."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx.utils import tree_map
from mlx_lm.tuner.utils import linear_to_lora_layers

import models
from mlx_redrafter.cache.prompt_cache import PromptCache
from mlx_redrafter.engine.batch import Engine
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.engine.events import NewToken
from mlx_redrafter.engine.model import SpeculativeModel

PROMPT = models.prompt_of(20)
CONFIG = DecodingConfig(max_tokens=6)


def text(model: SpeculativeModel, cache: PromptCache | None = None) -> list[int]:
    return [one.token for one in decode(model, PROMPT, CONFIG, cache=cache)]


def replace_weights(model: SpeculativeModel) -> None:
    target = model.target.model
    target.update(tree_map(lambda array: mx.flip(array, axis=0), target.parameters()))


@pytest.mark.parametrize("copied", [False, True])
def test_rows_of_replaced_weights_are_not_gone_on_from(copied: bool) -> None:
    model = SpeculativeModel(models.build("llama"), models.build_drafter())
    cache = model.make_cache()
    before = text(model, cache)
    replace_weights(model)
    after = text(model)
    assert after != before
    assert text(model, cache.copy() if copied else cache) == after


@pytest.mark.parametrize("dora", [False, True])
def test_rows_of_an_adapter_that_is_switched_off_are_not_gone_on_from(dora: bool) -> None:
    model = SpeculativeModel(models.build("llama"), models.build_drafter())
    target = model.target.model
    linear_to_lora_layers(target, 2, {"rank": 4, "scale": 20.0, "dropout": 0.0}, use_dora=dora)
    adapted = [one for one in target.modules() if "lora_b" in one]
    for one in adapted:
        one.lora_b = mx.random.normal(one.lora_b.shape)
    target.eval()
    cache = model.make_cache()
    before = text(model, cache)
    assert text(model, cache.copy()) == before
    for one in adapted:
        one.scale = 0.0
    after = text(model)
    assert after != before
    assert text(model, cache) == after


def test_unchanged_weights_keep_what_was_read() -> None:
    model = SpeculativeModel(models.build("llama"), models.build_drafter())
    cache = model.make_cache()
    text(model, cache)
    heard: list[tuple[int, int]] = []
    list(decode(model, PROMPT, CONFIG, cache=cache, progress=lambda *seen: heard.append(seen)))
    assert all(total < len(PROMPT) for _, total in heard)


def test_weights_may_be_replaced_while_a_text_waits() -> None:
    """Its rows are looked at when it begins, not when it is asked for."""
    model = SpeculativeModel(models.build("llama"), models.build_drafter())
    streamed, added = model.make_cache(), model.make_cache()
    text(model, streamed)
    text(model, added)
    stream = decode(model, PROMPT, CONFIG, cache=streamed)
    engine = Engine(model)
    engine.add(PROMPT, CONFIG, cache=added)
    replace_weights(model)
    after = text(model)
    assert [one.token for one in stream] == after
    events = []
    while engine.busy:
        events += engine.step()
    assert [one.decoded.token for one in events if isinstance(one, NewToken)] == after
