from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

import models
from mlx_redrafter.drafting.config import MODEL_TYPE, DrafterConfig
from mlx_redrafter.drafting.drafter import Drafter
from mlx_redrafter.drafting.kinds import drafter_of
from mlx_redrafter.drafting.recurrent_drafter import RecurrentDrafter
from mlx_redrafter.errors import RedrafterError

APPLE = {
    "hidden_size": 8,
    "vocab_size": 30,
    "exit_dim": 16,
    "num_draft_layers": 2,
    "rnn": True,
}


def names(drafter: Drafter) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tree_flatten(drafter.parameters())}


def test_apples_parameter_names() -> None:
    assert names(RecurrentDrafter(DrafterConfig.from_dict(APPLE))) == {
        "lm_head.0.linear.weight": (16, 16),
        "lm_head.0.linear.bias": (16,),
        "lm_head.1.linear.weight": (16, 16),
        "lm_head.1.linear.bias": (16,),
        "lm_head.2.weight": (30, 16),
        "rnn_u.weight": (8, 8),
        "rnn_u.bias": (8,),
        "rnn_w.weight": (8, 8),
    }


def test_parameters_of_the_variants() -> None:
    config = {**APPLE, "rnn": False, "exit_dim": 12, "draft_vocab_size": 10, "num_draft_layers": 0}
    assert names(RecurrentDrafter(DrafterConfig.from_dict(config))) == {
        "input_proj.weight": (12, 16),
        "input_proj.bias": (12,),
        "lm_head.0.weight": (10, 12),
        "draft_tokens": (10,),
    }


def test_an_absent_rnn_is_false() -> None:
    config = {key: value for key, value in APPLE.items() if key != "rnn"}
    assert DrafterConfig.from_dict(config).rnn is False


def test_unknown_keys_are_ignored() -> None:
    config = DrafterConfig.from_dict({**APPLE, "torch_dtype": "float16", "emb_norm": False})
    assert config == DrafterConfig.from_dict(APPLE)


def test_config_round_trip() -> None:
    config = DrafterConfig.from_dict(
        {**APPLE, "draft_vocab_size": 5, "target": {"name": "x"}, "quantization": {"bits": 8}}
    )
    assert DrafterConfig.from_dict(config.to_dict()) == config
    assert config.to_dict()["model_type"] == MODEL_TYPE
    assert None not in DrafterConfig.from_dict(APPLE).to_dict().values()


def test_the_paper_s_head_looks_no_token_back() -> None:
    assert DrafterConfig.from_dict(APPLE).lookback == 0
    assert "lookback" not in DrafterConfig.from_dict(APPLE).to_dict()
    assert DrafterConfig.from_dict({**APPLE, "lookback": 4}).to_dict()["lookback"] == 4


@pytest.mark.parametrize("more", [{"lookback": -1}, {"lookback": 1.5}, {"lookback": None}])
def test_bad_lookbacks_are_refused(more: dict[str, Any]) -> None:
    with pytest.raises(RedrafterError, match="lookback"):
        DrafterConfig.from_dict({**APPLE, **more})


def test_independent_heads_look_no_token_back() -> None:
    with pytest.raises(RedrafterError, match="lookback=2"):
        DrafterConfig.from_dict({**APPLE, "independent_heads": 3, "lookback": 2})


@pytest.mark.parametrize("key", ["hidden_size", "vocab_size", "exit_dim", "num_draft_layers"])
@pytest.mark.parametrize("value", [None, "8", -1, 2.5, True])
def test_bad_sizes_are_refused(key: str, value: Any) -> None:
    with pytest.raises(RedrafterError, match=key):
        DrafterConfig.from_dict({**APPLE, key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("draft_vocab_size", 0),
        ("draft_vocab_size", -3),
        ("draft_vocab_size", "many"),
        ("draft_vocab_size", 31),
        ("quantization", 5),
        ("target", "some model"),
        ("target_layers", 5),
    ],
)
def test_other_bad_values_are_refused(key: str, value: Any) -> None:
    with pytest.raises(RedrafterError, match=f"config.json has {key}="):
        DrafterConfig.from_dict({**APPLE, key: value})
    shape = DrafterConfig.from_dict(APPLE)
    with pytest.raises(RedrafterError, match=f"DrafterConfig has {key}="):
        replace(shape, **{key: value})


def test_a_head_of_no_size_is_refused() -> None:
    wrong: Any = "64"
    with pytest.raises(RedrafterError, match="DrafterConfig has hidden_size='64', but it has to"):
        DrafterConfig(hidden_size=wrong, vocab_size=8, exit_dim=4, num_draft_layers=1)
    with pytest.raises(RedrafterError, match="DrafterConfig has memory_head_dim=None, but it has"):
        DrafterConfig(8, 8, 16, 1, memory_heads=2)


def test_another_kind_of_model_is_refused() -> None:
    with pytest.raises(RedrafterError, match="'llama' model, not a drafter"):
        DrafterConfig.from_dict({**APPLE, "model_type": "llama"})


def test_gated_state() -> None:
    drafter = models.build_drafter(seed=3)
    rng = np.random.default_rng(0)
    e, s = rng.standard_normal((2, 5, models.HIDDEN)).astype(np.float32)
    w, u, b = (
        np.array(x) for x in (drafter.rnn_w.weight, drafter.rnn_u.weight, drafter.rnn_u.bias)
    )
    z = e @ w.T + s @ u.T + b
    np.testing.assert_allclose(
        np.array(drafter.advance(mx.array(e), mx.array(s))), z / (1 + np.exp(-z)), atol=1e-4
    )


def test_plain_state_is_a_sum() -> None:
    drafter = models.build_drafter(rnn=False)
    e = mx.random.normal((3, models.HIDDEN), key=mx.random.key(0))
    state = drafter.advance(e, drafter.initial_state(3))
    assert mx.array_equal(state, e)
    assert mx.array_equal(drafter.advance(e, state), e + e)


@pytest.mark.parametrize("rnn", [True, False])
def test_reading_is_advancing_over_what_is_known(rnn: bool) -> None:
    drafter = models.build_drafter(rnn=rnn, lookback=4)
    e = mx.random.normal((5, 4, models.HIDDEN), key=mx.random.key(2))
    known = mx.array([[place >= 4 - row for place in range(4)] for row in range(5)])
    found = drafter.read(e, known)
    for row in range(5):
        state = drafter.initial_state(1)
        for place in range(4 - row, 4):
            state = drafter.advance(e[row : row + 1, place], state)
        np.testing.assert_allclose(np.array(found[row]), np.array(state[0]), atol=1e-5)


@pytest.mark.parametrize("kind", [{}, {"lookback": 3}, {"independent_heads": 2}])
def test_guesses_along_texts_are_those_of_every_draft(kind: dict[str, Any]) -> None:
    drafter = drafter_of(DrafterConfig(models.HIDDEN, models.VOCAB, models.HIDDEN, 1, **kind))
    models.randomise(drafter, 4)
    hidden, embeddings = mx.random.normal((2, 2, 7, models.HIDDEN), key=mx.random.key(5))
    depth = 3
    found = drafter.logits_along(hidden, embeddings, depth)
    assert [len(logits) for logits in found] == [13, 12, 11]
    for text in range(2):
        for place in range(7 - depth):
            state = drafter.initial_state(1)
            for known in range(max(place + 1 - drafter.config.lookback, 0), place + 1):
                state = drafter.advance(embeddings[text, known][None], state)
            for k in range(1, depth + 1):
                state = drafter.advance(embeddings[text, place + k][None], state)
                wanted = drafter.logits(hidden[text, place][None], state)[0]
                row = found[k - 1][7 * text + place]
                np.testing.assert_allclose(np.array(row), np.array(wanted), atol=1e-4)


@pytest.mark.parametrize("exit_dim", [2 * models.HIDDEN, 24])
def test_logits(exit_dim: int) -> None:
    drafter = models.build_drafter(exit_dim=exit_dim, num_draft_layers=2, seed=1)
    assert ("input_proj" in drafter) == (exit_dim == 24)
    rng = np.random.default_rng(1)
    hidden, state = rng.standard_normal((2, models.HIDDEN)).astype(np.float32)
    x = np.concatenate([hidden, state])
    if exit_dim == 24:
        x = np.array(drafter.input_proj.weight) @ x + np.array(drafter.input_proj.bias)
    for block in drafter.lm_head[:-1]:
        z = np.array(block.linear.weight) @ x + np.array(block.linear.bias)
        x = x + z / (1 + np.exp(-z))
    wanted = np.array(drafter.lm_head[-1].weight) @ x
    np.testing.assert_allclose(
        np.array(drafter.logits(mx.array(hidden), mx.array(state))), wanted, atol=1e-4
    )


def test_one_hidden_state_serves_all_beams() -> None:
    drafter = models.build_drafter()
    hidden = mx.random.normal((models.HIDDEN,), key=mx.random.key(0))
    states = mx.random.normal((4, models.HIDDEN), key=mx.random.key(1))
    together = drafter.logits(hidden, states)
    assert together.shape == (4, models.VOCAB)
    for row, state in zip(together, states, strict=True):
        assert mx.allclose(row, drafter.logits(hidden, state), atol=1e-4)


def test_small_head() -> None:
    drafter = models.build_drafter(draft_vocab_size=5)
    drafter.draft_tokens = mx.array([2, 3, 10, 20, 63], dtype=mx.int32)
    assert drafter.target_tokens(mx.array([4, 0, 2])).tolist() == [63, 2, 10]
    values = mx.arange(2 * models.VOCAB).reshape(2, -1)
    assert drafter.draft_columns(values).tolist() == [
        [2, 3, 10, 20, 63],
        [66, 67, 74, 84, 127],
    ]


def test_full_head() -> None:
    drafter = models.build_drafter()
    assert drafter.target_tokens(mx.array([4, 0])).tolist() == [4, 0]
    values = mx.zeros((2, models.VOCAB))
    assert drafter.draft_columns(values) is values


def test_the_map_is_never_trained() -> None:
    trainable = dict(tree_flatten(models.build_drafter(draft_vocab_size=5).trainable_parameters()))
    assert "draft_tokens" not in trainable
    assert "lm_head.1.weight" in trainable
