"""Layers with recurrent state under a tree: each node after its own path, and what stays of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import architectures
import mlx.core as mx
import mlx.nn as nn
import pytest
from architectures import prompt_of
from common_config import VOCAB
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from reference_step import path_to
from text_source import TextSource

from mlx_redrafter.cache import attention, recurrent
from mlx_redrafter.cache.attention import TreeKVCache
from mlx_redrafter.cache.composite import CacheGroup
from mlx_redrafter.cache.kept_points import KEPT_PIECES, KEPT_PROMPTS
from mlx_redrafter.cache.layer_cache import LayerCache
from mlx_redrafter.cache.module_call import ModuleCall
from mlx_redrafter.cache.prompt_cache import PromptCache
from mlx_redrafter.cache.quantized import CacheOptions
from mlx_redrafter.cache.recurrent import RecurrentCache
from mlx_redrafter.drafting.config import DrafterConfig
from mlx_redrafter.drafting.recurrent_drafter import RecurrentDrafter
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.engine.decode import DecodingConfig, decode
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.sampling import SamplingConfig
from mlx_redrafter.target.architectures import HYBRIDS, UNBATCHED
from mlx_redrafter.target.target import Target
from mlx_redrafter.tree import DraftTree

NAMES = [name for name in architectures.CONFIGS if name.split(":")[0] in HYBRIDS]
# Every kind of state: SSM, gated delta, short convolution, RWKV, a state beside keys and values in
# one layer, a convolution inside attention, an n-gram history outside the layers, open groups.
KINDS = [
    "mamba", "falcon_h1", "qwen3_next", "lfm2", "rwkv7", "baichuan_m1", "bailing_moe_linear",
    "recurrent_gemma", "longcat_flash_ngram", "deepseek_v41",
]  # fmt: skip

# A tree that branches at every level, in which no order of nodes is that of a path; its longest
# path has as many rows as these models have heads.
PARENTS = (-1, 0, 0, 1, 1, 2, 4, 0, 5)
TOKENS = (7, 11, 5, 42, 9, 8, 11, 60, 33)


@cache
def shared(name: str) -> SpeculativeModel:
    return SpeculativeModel(architectures.build(name))


def tree() -> DraftTree:
    return DraftTree.from_parents(TOKENS, PARENTS)


def prefilled(target: Target, tokens: Sequence[int]) -> PromptCache:
    held = target.make_cache()
    if tokens:
        target.prefill(mx.array(list(tokens)), held)
        held.extend(tokens)
    return held


def plain_logits(target: Target, tokens: Sequence[int]) -> mx.array:
    """After the last of some tokens, as mlx-lm's model gives them in one pass."""
    return target.model(mx.array([list(tokens)]), cache=target.make_cache().seams)[0, -1]


def check_nodes(target: Target, held: PromptCache, nodes: Sequence[int] = range(9)) -> None:
    logits, _ = target.verify(tree(), held)
    for node in nodes:
        text = held.tokens + [TOKENS[one] for one in path_to(node, PARENTS)]
        expected = plain_logits(target, text)
        # To 1e-4 of the largest logit: sums over several rows round otherwise than over one.
        furthest = mx.abs(logits[node] - expected).max() / mx.abs(expected).max()
        assert furthest.item() < 1e-4, node


def states_of(held: PromptCache) -> list[RecurrentCache]:
    def parts(layer: LayerCache) -> list[LayerCache]:
        return list(layer.parts) if isinstance(layer, CacheGroup) else [layer]

    found = [part for layer in held.layers for part in parts(layer)]
    return [part for part in found if isinstance(part, RecurrentCache)]


@pytest.mark.parametrize("name", ["qwen3_next", "baichuan_m1"])
def test_the_size_is_that_of_all_that_is_kept_and_of_each_array_once(name: str) -> None:
    """With the states at the ends of two prompts, of which the last is where it stands."""
    target = shared(name).target
    held = prefilled(target, prompt_of(20))
    target.prefill(mx.array(prompt_of(7)), held)
    held.extend(prompt_of(7))
    leaves = [leaf for layer in held.layers for leaf in layer.leaves]
    of_state = [leaf for leaf in leaves if isinstance(leaf, RecurrentCache)]
    for leaf in of_state:
        arrays = [array for _, array in tree_flatten(leaf.state) if array is not None]
        now = sum(int(array.nbytes) for array in arrays)
        assert leaf.nbytes == 2 * now
    assert held.nbytes == sum(leaf.nbytes for leaf in leaves)
    assert of_state


@pytest.mark.parametrize("length", [0, 1, 21])
@pytest.mark.parametrize("name", NAMES)
def test_every_node_stands_after_its_own_path(name: str, length: int) -> None:
    """Logits after a node are those after its path alone, and so they are after a commit."""
    target = shared(name).target
    assert target.verifies == "tree"
    held = prefilled(target, prompt_of(length))
    check_nodes(target, held)
    for path in (path_to(6, PARENTS), path_to(3, PARENTS), path_to(7, PARENTS), [0]):
        held.commit(path, [TOKENS[node] for node in path])
        check_nodes(target, held, (0, 6, 8))


@pytest.mark.parametrize("name", KINDS)
def test_bounds_may_be_loose(name: str) -> None:
    """More paths and levels than the tree has, as where it is not known on the host."""
    target = shared(name).target
    held = prefilled(target, prompt_of(9))
    exact, _ = target.verify(tree(), held)
    known = tree()
    loose = DraftTree(
        known.tokens, known.parents, known.depths, known.log_probs, known.ancestors, max_depth=6
    )
    logits, _ = target.verify(loose, held)
    assert mx.allclose(logits, exact, rtol=1e-4, atol=1e-4)
    held.commit(path_to(6, PARENTS), [TOKENS[node] for node in path_to(6, PARENTS)])
    check_nodes(target, held, (0, 8))


@pytest.mark.parametrize("name", KINDS)
def test_a_rejected_tree_leaves_no_trace(name: str) -> None:
    target = shared(name).target
    held = prefilled(target, prompt_of(9))
    for _ in range(2):
        target.verify(tree(), held)
    held.rewind(9)
    check_nodes(target, held, (0, 6))


@pytest.mark.parametrize("name", KINDS)
def test_an_accepted_path_can_be_taken_back_in_part(name: str) -> None:
    target = shared(name).target
    for length in (10, 11, 12):
        held = prefilled(target, prompt_of(9))
        target.verify(tree(), held)
        path = path_to(6, PARENTS)
        held.commit(path, [TOKENS[node] for node in path])
        assert len(held) == 13
        held.rewind(length)
        assert held.tokens == (prompt_of(9) + [TOKENS[node] for node in path])[:length]
        check_nodes(target, held, (0, 6))


@pytest.mark.parametrize("held_bytes", [0, 1 << 30], ids=["replayed", "held"])
@pytest.mark.parametrize("name", KINDS)
def test_a_path_from_end_to_end_needs_no_replay_where_its_state_is_held(
    name: str, held_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    replays: list[ModuleCall] = []
    replay = ModuleCall.replay

    def counted(self: ModuleCall, *args: Any, **kwargs: Any) -> None:
        replays.append(self)
        replay(self, *args, **kwargs)

    monkeypatch.setattr(ModuleCall, "replay", counted)
    monkeypatch.setattr(recurrent, "HELD_BYTES", held_bytes)
    target = shared(name).target
    held = prefilled(target, prompt_of(9))
    target.verify(tree(), held)
    longest, shorter = path_to(6, PARENTS), path_to(8, PARENTS)
    held.commit(longest, [TOKENS[node] for node in longest])
    # A convolution inside attention sees nodes, not paths.
    spreads = name != "baichuan_m1"
    assert bool(replays) == (held_bytes == 0 or not spreads)
    check_nodes(target, held, (0, 6))
    replays.clear()
    held.commit(shorter[:2], [TOKENS[node] for node in shorter[:2]])
    assert replays
    check_nodes(target, held, (0, 6))


def test_weights_are_read_once_a_node_and_never_for_a_replay() -> None:
    """Matrix products inside a recurrent module see the tree's nodes, not the rows of its paths."""
    shapes: list[tuple[int, ...]] = []

    class Counted(nn.Linear):
        def __call__(self, x: mx.array) -> mx.array:
            shapes.append(x.shape)
            return super().__call__(x)

    model = architectures.build("qwen3_next")
    module = next(layer.linear_attn for layer in model.layers if hasattr(layer, "linear_attn"))
    products = [module.in_proj_qkvz, module.in_proj_ba, module.out_proj]
    for product in products:
        product.__class__ = Counted
    target = Target(model)
    held = prefilled(target, prompt_of(9))
    shapes.clear()
    target.verify(tree(), held)
    assert [shape[:2] for shape in shapes] == [(1, 9)] * len(products)
    held.commit(path_to(3, PARENTS), [TOKENS[node] for node in path_to(3, PARENTS)])
    assert len(shapes) == len(products)
    check_nodes(target, held, (0, 6))


def mlx_lms(target: Target, prompt: Sequence[int], count: int) -> list[int]:
    steps = generate_step(mx.array(list(prompt)), target.model, max_tokens=count)
    return [int(token) for token, _ in steps]


@pytest.mark.parametrize("name", KINDS)
def test_abandonment_anywhere_keeps_what_was_handed_out(name: str) -> None:
    model = shared(name)
    prompt = prompt_of(9)
    text = mlx_lms(model.target, prompt, 10)
    for seen in (1, 3, 6):
        held = model.make_cache()
        source = TextSource(prompt + text, branching=True, seed=seen)
        drafted = SpeculativeModel(model.target, source)
        tokens = decode(drafted, prompt, DecodingConfig(max_tokens=9), cache=held)
        got = [next(tokens).token for _ in range(seen)]
        tokens.close()  # type: ignore[attr-defined]
        assert got == text[:seen]
        assert held.tokens == prompt + got[:-1]
        check_nodes(model.target, held, (0, 6))


@pytest.mark.parametrize("length", [1, 9])
@pytest.mark.parametrize("name", KINDS)
def test_setting_back_nothing_leaves_a_text_under_way_alone(name: str, length: int) -> None:
    """The step after it may have begun already, and stands in the layers."""
    model, prompt = shared(name), prompt_of(length)
    held = model.make_cache()
    got = []
    for token in decode(model, prompt, DecodingConfig(max_tokens=9, draft=False), cache=held):
        got.append(token.token)
        held.rewind(len(held))
    assert got == mlx_lms(model.target, prompt, 9)


@pytest.mark.parametrize("start", [0, 16])
@pytest.mark.parametrize("name", ["qwen3_next", "falcon_h1", "lfm2"])
def test_quantised_keys_beside_recurrent_state(
    name: str, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they begin within a draft, tokens are verified one by one."""
    # Heads as wide as a group of what is quantised together.
    model = SpeculativeModel(architectures.build(name, head_dim=32, num_attention_heads=2))
    # How many threads made a sum shows in its last bit, of which eight-bit keys make a whole step.
    monkeypatch.setattr(model.target, "take_cores", lambda _rows: None)
    prompt = prompt_of(12)
    options = CacheOptions(kv_bits=8, kv_group_size=32, quantized_kv_start=start)
    config = DecodingConfig(max_tokens=12, cache_options=options)
    plain = [one.token for one in decode(model, prompt, replace(config, draft=False))]
    source = TextSource(prompt + plain, branching=True)
    drafted = SpeculativeModel(model.target, source)
    assert [one.token for one in decode(drafted, prompt, config)] == plain
    assert source.hoped > 0


@pytest.mark.parametrize("name", ["qwen3_next", "lfm2", "falcon_h1", "rwkv7"])
def test_a_beam_searchs_trees_change_nothing(name: str) -> None:
    """Trees that are made on the device; greedy, and sampled with the noise of each position."""
    drafter = RecurrentDrafter(
        DrafterConfig(hidden_size=64, vocab_size=VOCAB, exit_dim=128, num_draft_layers=1)
    )
    architectures.randomise(drafter, 0)
    model = SpeculativeModel(shared(name).target, drafter)
    prompt = prompt_of(20)
    for sampling in (SamplingConfig(), SamplingConfig(temperature=1.0, top_p=0.9, seed=3)):
        texts = []
        for shape in (BeamShape(4, 5), BeamShape(3, 4, 6), BeamShape(1, 3), None):
            config = DecodingConfig(
                max_tokens=12, sampling=sampling, draft=shape is not None, beam=shape or BeamShape()
            )
            texts.append([one.token for one in decode(model, prompt, config)])
        assert all(text == texts[-1] for text in texts)


@pytest.mark.parametrize("name", ["qwen3_next", "recurrent_gemma", "gear", "baichuan_m1"])
def test_an_earlier_turn_is_gone_back_to_without_starting_anew(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ends of prompts stay reachable, and some of the pieces that long ones are run in.

    So they are where windows beside the recurrent state have moved on.
    """
    monkeypatch.setattr(attention, "REWIND_MARGIN", 2)
    monkeypatch.setattr(TreeKVCache, "step", 8)
    target = shared(name).target
    held = target.make_cache()
    text: list[int] = []
    ends = []
    for turn in range(4):
        text += prompt_of(13, seed=turn)
        for _ in target.fill(text[len(held) :], held, 5):
            pass
        ends.append(len(held))
        target.verify(DraftTree.root_only(mx.array([3])), held)
        held.commit([0], [3])
        text.append(3)
    # Another question in the second turn: on from the end of the first.
    edited = [*text[: ends[0] + 3], 90, 91, 92]
    assert held.reuse(edited) == ends[0]
    check_nodes(target, held, (0, 6))
    # A long document with another question behind it: on from one of its pieces.
    document = prompt_of(60, seed=9)
    held = target.make_cache()
    for _ in target.fill(document, held, 5):
        pass
    assert held.reuse([*document[:57], 90, 91, 92, 93]) == 55
    check_nodes(target, held, (0, 6))
    assert 15 <= held.reuse([*document[:31], 90, 91]) <= 30
    check_nodes(target, held, (0, 6))


def test_states_that_are_kept_are_bounded() -> None:
    target = shared("lfm2").target
    held = target.make_cache()
    for _ in target.fill(prompt_of(120), held, 3):
        pass
    for state in states_of(held):
        assert len(state.rewind_points()) <= KEPT_PROMPTS + KEPT_PIECES + 2


@pytest.mark.parametrize("name", [name for name in KINDS if name not in UNBATCHED])
def test_in_a_batch_each_text_keeps_its_own_path(name: str) -> None:
    """Three texts, three trees; none, some and all of their longest path accepted."""
    target = shared(name).target
    alone = [prefilled(target, prompt_of(length)) for length in (6, 21, 17)]
    batch = target.make_batch_cache()
    batch.compose([], alone)
    lines = ([-1, 0, 0, 1, 3], [-1, 0, 1, 2, 3], [-1, 0, 0, 2, 2])
    for paths in (([0], [0, 1, 2, 3, 4], [0, 2, 4]), ([0, 1, 3, 4], [0], [0, 2])):
        drafts = [
            DraftTree.from_parents(prompt_of(5, seed=place), line)
            for place, line in enumerate(lines)
        ]
        logits, _ = target.verify_batch(drafts, batch)
        for place, (draft, held, path) in enumerate(zip(drafts, alone, paths, strict=True)):
            expected, _ = target.verify(draft, held)
            assert mx.allclose(logits[place], expected, rtol=2e-4, atol=2e-4), place
            tokens = [int(draft.tokens[node].item()) for node in path]
            held.commit(path, tokens)
            batch.rows[place].commit(path, tokens)
        batch.commit()
    plain = [DraftTree.root_only(mx.array([4])) for _ in alone]
    logits, _ = target.verify_batch(plain, batch)
    for place, held in enumerate(alone):
        assert mx.allclose(logits[place, 0], plain_logits(target, [*held.tokens, 4]), atol=2e-4)
