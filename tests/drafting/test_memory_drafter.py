"""The head with a memory of the text, against the same written out in numpy."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from slow_memory import SlowMemoryHead

import models
from mlx_redrafter.cache.text_memory import TextMemory
from mlx_redrafter.drafting.beam_search import BeamSearch
from mlx_redrafter.drafting.config import DrafterConfig
from mlx_redrafter.drafting.kinds import drafter_of, prepare
from mlx_redrafter.drafting.memory_drafter import MemoryDrafter, MemoryView, together
from mlx_redrafter.drafting.prepared_drafter import DraftStart
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.drafting.source import DraftInput
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.sampling import SamplingConfig

LENGTH = 13


@pytest.fixture(params=[False, True], ids=["all-tokens", "some-tokens"])
def drafter(request: pytest.FixtureRequest) -> MemoryDrafter:
    return models.memory_drafter(size=20 if request.param else None)


def text(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, hidden states of two layers and the end, and a table of embeddings."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, models.VOCAB, LENGTH)
    hidden = rng.normal(size=(LENGTH, 3, models.HIDDEN)).astype(np.float32)
    return tokens, hidden, rng.normal(size=(models.VOCAB, models.HIDDEN)).astype(np.float32)


def view_of(drafter: MemoryDrafter, anchor: int, seed: int = 0) -> tuple[mx.array, MemoryView]:
    """What a draft starts from and sees whose last verified token is ``anchor``."""
    tokens, hidden, table = text(seed)
    states = drafter.fused(mx.array(hidden.reshape(LENGTH, -1)))
    embeddings = mx.array(table[tokens])
    memory = TextMemory()
    for start in range(0, anchor + 1, 4):  # as prompts and steps come
        end = min(start + 4, anchor + 1)
        rows = drafter.remembered(states[None, start:end], embeddings[None, start:end], start)
        memory.append(*rows)
    following = drafter.token_values(embeddings[None, anchor + 1 : anchor + 2])
    window = drafter.config.memory_window or 0
    keys, values = memory.pairs(window, following)
    return states[anchor], MemoryView(keys, values, None, mx.array([anchor + 1], dtype=mx.int32))


@pytest.mark.parametrize("anchor", [0, 3, 8])
def test_levels_equal_the_head_written_out(drafter: MemoryDrafter, anchor: int) -> None:
    tokens, hidden, table = text()
    fed = [int(token) for token in tokens[anchor + 1 : anchor + 5]]
    slow = SlowMemoryHead(drafter, hidden, table[tokens]).draft(anchor, fed, table)
    prepared = prepare(drafter)
    start, view = view_of(drafter, anchor)
    embed = lambda t: mx.array(table)[t]  # noqa: E731
    draft, state = prepared.begin(DraftStart(embed, start[None], None, view, 4))
    for depth, token in enumerate(fed):
        state = prepared.advance(draft, mx.array(table[token])[None, None], state, depth)
        found = np.array(prepared.logits(draft, state))[0, 0]
        np.testing.assert_allclose(found, slow[depth], atol=2e-4)


def test_training_sees_what_drafts_see(drafter: MemoryDrafter) -> None:
    tokens, hidden, table = text()
    slow = SlowMemoryHead(drafter, hidden, table[tokens])
    states, embeddings = mx.array(hidden.reshape(1, LENGTH, -1)), mx.array(table[tokens])[None]
    made = [np.array(logits) for logits in drafter.logits_along(states, embeddings, 3)]
    assert [x.shape[0] for x in made] == [LENGTH - 1, LENGTH - 2, LENGTH - 3]
    # Training reads whole texts, which are shorter than the window that drafts are given.
    for anchor in range(min(LENGTH - 4, drafter.config.memory_window or 0)):
        fed = [int(token) for token in tokens[anchor + 1 : anchor + 4]]
        for depth, logits in enumerate(slow.draft(anchor, fed, table)):
            np.testing.assert_allclose(made[depth][anchor], logits, atol=2e-4)


def test_a_draft_of_one_beam_is_greedy(drafter: MemoryDrafter) -> None:
    tokens, hidden, table = text()
    slow = SlowMemoryHead(drafter, hidden, table[tokens])
    start, view = view_of(drafter, 5)
    embed = lambda t: mx.array(table)[t]  # noqa: E731
    search = BeamSearch(prepare(drafter), embed, BeamShape(1, 4), SamplingConfig())
    root = mx.array([int(tokens[6])], dtype=mx.int32)
    tree = search(DraftInput(root, start, None, memory=view))
    known = np.array(drafter.target_tokens(mx.arange(drafter.config.head_size)))
    fed = [int(tokens[6])]
    for _ in range(4):
        fed.append(int(known[np.argmax(slow.draft(5, fed, table)[-1])]))
    assert tree.tokens.tolist() == fed


def test_texts_of_several_lengths_draft_together_as_alone(drafter: MemoryDrafter) -> None:
    tokens, _, table = text()
    embed = lambda t: mx.array(table)[t]  # noqa: E731
    search = BeamSearch(prepare(drafter), embed, BeamShape(3, 3), SamplingConfig())
    inputs = []
    for seed, anchor in ((0, 2), (1, 8), (2, 5)):
        start, view = view_of(drafter, anchor, seed)
        root = mx.array([int(tokens[anchor])], dtype=mx.int32)
        inputs.append(DraftInput(root, start, None, memory=view))
    for one, tree in zip(inputs, search.together(inputs), strict=True):
        alone = search(one)
        assert tree.tokens.tolist() == alone.tokens.tolist()
        assert tree.parents.tolist() == alone.parents.tolist()
        np.testing.assert_allclose(np.array(tree.log_probs), np.array(alone.log_probs), atol=1e-4)


def test_views_are_padded_to_the_longest() -> None:
    drafter = models.memory_drafter()
    views = [view_of(drafter, anchor)[1] for anchor in (1, 6)]
    joined = together(views)
    assert joined.keys.shape[0] == 2
    assert joined.mask is not None
    assert joined.mask[:, 0, 0].sum(-1).tolist() == [2, 7]


def test_a_memory_forgets_what_was_taken_back() -> None:
    drafter = models.memory_drafter()
    tokens, hidden, table = text()
    states = drafter.fused(mx.array(hidden.reshape(LENGTH, -1)))[None]
    embeddings = mx.array(table[tokens])[None]
    memory, straight = TextMemory(), TextMemory()
    memory.append(*drafter.remembered(states[:, :6], embeddings[:, :6], 0))
    memory.rewind(3)
    memory.append(*drafter.remembered(states[:, 3:9], embeddings[:, 3:9], 3))
    straight.append(*drafter.remembered(states[:, :9], embeddings[:, :9], 0))
    last = drafter.token_values(embeddings[:, 9:10])
    for ours, theirs in zip(memory.pairs(99, last), straight.pairs(99, last), strict=True):
        np.testing.assert_allclose(np.array(ours), np.array(theirs), atol=1e-5)
    assert memory.nbytes == straight.nbytes > 0
    memory.reset()
    assert (memory.offset, memory.nbytes) == (0, 0)


def test_a_long_text_fills_one_buffer_after_the_other() -> None:
    memory = TextMemory()
    rows = mx.arange(600, dtype=mx.float32)[None, None, :, None]
    for start in range(0, 600, 100):
        piece = rows[:, :, start : start + 100]
        memory.append(piece, piece, piece)
    keys, values = memory.pairs(250, mx.array([[[[600.0]]]]))
    assert keys[0, 0, :, 0].tolist() == list(range(350, 600))
    assert values[0, 0, :, 0].tolist() == [2 * i + 1 for i in range(350, 600)]


def test_a_draft_without_a_memory_is_refused() -> None:
    drafter = models.memory_drafter()
    table = mx.zeros((models.VOCAB, models.HIDDEN))
    search = BeamSearch(prepare(drafter), lambda t: table[t], BeamShape(2, 2), SamplingConfig())
    with pytest.raises(RedrafterError, match="memory of the text"):
        search(DraftInput(mx.array([1], dtype=mx.int32), mx.zeros((24,)), None))


@pytest.mark.parametrize(
    "change",
    [
        {"memory_window": None},
        {"memory_head_dim": 3},
        {"state_size": 0},
        {"target_layers": [3, 1]},
        {"target_layers": "all"},
        {"lookback": 2},
        {"shared_rows": True, "exit_dim": models.HIDDEN},
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    entry = models.memory_drafter().config.to_dict() | change
    with pytest.raises(RedrafterError, match=next(iter(change))):
        DrafterConfig.from_dict({k: v for k, v in entry.items() if v is not None})


def test_a_configuration_survives_being_written() -> None:
    config = models.memory_drafter().config
    again = DrafterConfig.from_dict(config.to_dict())
    assert again == config
    assert isinstance(drafter_of(again), MemoryDrafter)
    assert "memory_heads" not in models.build_drafter().config.to_dict()
