"""Recurrent state under verification: snapshots, replays, going back, and draft chains."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache as memoise
from types import SimpleNamespace
from typing import Any

import architectures
import mlx.core as mx
import pytest
from architectures import prompt_of
from common_config import VOCAB
from mlx_lm.generate import generate_step
from text_source import TextSource

from mlx_redrafter.cache.forward_context import ForwardContext
from mlx_redrafter.cache.kept_points import KEPT_PIECES, KEPT_PROMPTS
from mlx_redrafter.cache.module_call import ModuleCall
from mlx_redrafter.cache.prompt_cache import PromptCache
from mlx_redrafter.cache.recurrent import RecurrentCache
from mlx_redrafter.drafting.chain import ChainSource, chain_of
from mlx_redrafter.drafting.config import DrafterConfig
from mlx_redrafter.drafting.recurrent_drafter import RecurrentDrafter
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.engine.step import DecodedToken
from mlx_redrafter.planning import calibration
from mlx_redrafter.planning.calibration import SIZES, calibrate
from mlx_redrafter.planning.costs import CostModel
from mlx_redrafter.planning.shapes import candidate_shapes, probe_shapes
from mlx_redrafter.sampling import SamplingConfig
from mlx_redrafter.target.target import Target
from mlx_redrafter.tree import DraftTree

# Every kind of state: SSM, gated delta, short convolution, RWKV, a state beside keys and values in
# one layer, an n-gram history outside the layers, DeepSeek's open groups.
KINDS = [
    "mamba",
    "falcon_h1",
    "qwen3_next",
    "lfm2",
    "rwkv7",
    "baichuan_m1",
    "kimi_k3",
    "longcat_flash_ngram",
    "deepseek_v41",
]


@memoise
def shared(name: str) -> SpeculativeModel:
    return SpeculativeModel(architectures.build(name))


def mlx_lms(model: SpeculativeModel, prompt: Sequence[int], count: int = 12) -> list[int]:
    steps = generate_step(mx.array(list(prompt)), model.target.model, max_tokens=count)
    return [int(token) for token, _ in steps]


def chain(tokens: Sequence[int]) -> DraftTree:
    return DraftTree.from_parents(tokens, range(-1, len(tokens) - 1))


def prefilled(model: SpeculativeModel, tokens: Sequence[int]) -> PromptCache:
    held = model.make_cache()
    model.target.prefill(mx.array(list(tokens)), held)
    held.extend(tokens)
    return held


def next_logits(model: SpeculativeModel, held: PromptCache) -> mx.array:
    return model.target.verify(chain([7]), held)[0]


def assert_holds(model: SpeculativeModel, held: PromptCache, tokens: Sequence[int]) -> None:
    """The cache goes on exactly as one into which just these tokens were put."""
    assert held.tokens == list(tokens)
    expected = next_logits(model, prefilled(model, tokens))
    assert mx.allclose(next_logits(model, held), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("accepted", range(1, 6))
@pytest.mark.parametrize("name", KINDS)
def test_a_rejected_tail_leaves_no_trace(name: str, accepted: int) -> None:
    model = shared(name)
    prompt, draft = prompt_of(19), prompt_of(5, seed=4)
    held = prefilled(model, prompt)
    for _ in range(2):  # the second time behind a replayed state
        model.target.verify(chain(draft), held)
        held.commit(range(accepted), draft[:accepted])
        prompt = prompt + draft[:accepted]
        assert_holds(model, held, prompt)


@pytest.mark.parametrize("name", KINDS)
def test_an_uncommitted_chain_leaves_no_trace(name: str) -> None:
    model = shared(name)
    prompt = prompt_of(19)
    held = prefilled(model, prompt)
    for seed in range(3):
        model.target.verify(chain(prompt_of(4, seed=seed)), held)
    assert_holds(model, held, prompt)
    held.rewind(len(prompt))
    assert_holds(model, held, prompt)


@pytest.mark.parametrize("name", KINDS)
def test_abandonment_anywhere_keeps_what_was_handed_out(name: str) -> None:
    model = shared(name)
    prompt = prompt_of(9)
    text = mlx_lms(model, prompt)
    for seen in range(1, 9):
        held = model.make_cache()
        source = TextSource(prompt + text, branching=False, seed=seen)
        drafted = SpeculativeModel(model.target, source)
        tokens = decode(drafted, prompt, DecodingConfig(max_tokens=10), cache=held)
        got = [next(tokens).token for _ in range(seen)]
        tokens.close()  # type: ignore[attr-defined]
        assert got == text[:seen]
        assert_holds(model, held, prompt + got[:-1])


@pytest.mark.parametrize("name", ["qwen3_next", "lfm2"])
def test_abandonment_of_plain_decoding(name: str) -> None:
    model = shared(name)
    prompt = prompt_of(9)
    for seen in (1, 2, 5):
        held = model.make_cache()
        tokens = decode(model, prompt, DecodingConfig(max_tokens=10), cache=held)
        got = [next(tokens).token for _ in range(seen)]
        tokens.close()  # type: ignore[attr-defined]
        assert_holds(model, held, prompt + got[:-1])


def test_a_cut_in_the_middle_of_accepted_tokens() -> None:
    model = shared("qwen3_next")
    prompt = prompt_of(9)
    text = mlx_lms(model, prompt)
    for eos in text[:7]:
        held = model.make_cache()
        source = TextSource(prompt + text, branching=False, seed=3)
        config = DecodingConfig(max_tokens=10, eos_token_ids=frozenset([eos]))
        drafted = SpeculativeModel(model.target, source)
        got = [one.token for one in decode(drafted, prompt, config, cache=held)]
        assert got == text[: text.index(eos) + 1]
        assert_holds(model, held, prompt + got[:-1])


def run(model: SpeculativeModel, prompt: list[int], held: PromptCache) -> list[DecodedToken]:
    return list(decode(model, prompt, DecodingConfig(max_tokens=6), cache=held))


def test_an_interrupted_step_leaves_the_cache_consistent(monkeypatch: pytest.MonkeyPatch) -> None:
    model = shared("lfm2")
    prompt = prompt_of(9)
    for reads in range(3):
        held = model.make_cache()
        left = [reads]

        def interrupted(array: mx.array, left: list[int] = left) -> tuple[Any, ...]:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return tuple(array.tolist())  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr("mlx_redrafter.engine.sequence.read_numbers", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run(model, prompt, held)
        assert_holds(model, held, held.tokens)
        assert held.tokens[: len(prompt)] == prompt[: len(held.tokens)]


def test_histories() -> None:
    """Going on, asking again, and editing: the end of the last prompts stays reachable."""
    model = shared("qwen3_next")
    held = model.make_cache()
    first = prompt_of(20)
    answer = [one.token for one in run(model, first, held)]
    assert held.reuse(first) == len(first) - 1  # the same question again
    assert [one.token for one in run(model, first, held)] == answer
    second = first + answer[:-1] + prompt_of(6, seed=1)
    assert held.reuse(second) == len(first) + len(answer) - 1
    assert [one.token for one in run(model, second, held)] == mlx_lms(model, second, 6)
    assert held.reuse([*second[:-1], 3, 4]) == len(second) - 1
    assert held.reuse([*first, 90]) == len(first) - 1  # the turn before the last
    edited = [*first[:8], *prompt_of(9, seed=2)]
    assert held.reuse(edited) == 0
    assert [one.token for one in run(model, edited, held)] == mlx_lms(model, edited, 6)


def test_prefill_in_chunks_keeps_the_turns_apart() -> None:
    model = shared("lfm2")
    held = model.make_cache()
    config = DecodingConfig(max_tokens=4, prefill_step_size=3)
    first = prompt_of(20)
    answer = [one.token for one in decode(model, first, config, cache=held)]
    second = first + answer + prompt_of(11, seed=1)
    list(decode(model, second, config, cache=held))
    assert held.reuse(first) == len(first) - 1


def test_only_the_outermost_module_is_run_again() -> None:
    model = shared("qwen3_next")
    held = prefilled(model, prompt_of(19))
    mx.eval(model.target.verify(chain(prompt_of(5)), held)[0], held.state)
    held.commit([0, 1], prompt_of(5)[:2])
    states = [layer for layer in held.layers if isinstance(layer, RecurrentCache)]
    assert states
    for layer in states:
        calls = layer._steps[-1].calls
        assert len(calls) == 1


def test_the_deepest_and_likeliest_path_is_the_chain() -> None:
    tree = DraftTree.from_parents(
        [5, 1, 2, 3, 4, 6], [-1, 0, 0, 1, 2, 3], [0.0, -1.0, -0.5, -2.0, -0.6, -2.5]
    )
    reduced = chain_of(tree)  # 4 is likelier, but 6 is deeper
    assert reduced.tokens.tolist() == [5, 1, 3, 6]
    assert reduced.parents.tolist() == [-1, 0, 1, 2]
    assert reduced.depths.tolist() == [0, 1, 2, 3]
    assert reduced.log_probs.tolist() == [0.0, -1.0, -2.0, -2.5]
    assert mx.array_equal(reduced.ancestors, mx.tril(mx.ones((4, 4))).astype(mx.bool_))
    assert chain_of(chain([9])).tokens.tolist() == [9]


def test_a_tree_that_stops_short_is_filled_up() -> None:
    tree = chain([5, 1])
    short = DraftTree(
        tree.tokens, tree.parents, tree.depths, tree.log_probs, tree.ancestors, max_depth=3
    )
    reduced = chain_of(short)
    assert reduced.tokens.tolist() == [5, 1, 0, 0]
    assert reduced.parents.tolist() == [-1, 0, 1, 2]


def unlisted(name: str) -> Target:
    """A model of somebody else's making, of which nothing but its caches is known."""
    model = architectures.build(name)
    model.__class__ = type("Model", (type(model),), {"__module__": "someone.elses"})
    return Target(model)


def test_the_beam_search_drafts_one_path_of_fixed_length() -> None:
    config = DrafterConfig(hidden_size=64, vocab_size=VOCAB, exit_dim=128, num_draft_layers=1)
    drafter = RecurrentDrafter(config)
    architectures.randomise(drafter, 0)
    model = SpeculativeModel(unlisted("lfm2"), drafter)
    assert model.target.verifies == "chain"
    source = model.source(BeamShape(4, 5, 3), SamplingConfig(), timed=False)
    assert isinstance(source, ChainSource)
    assert (source.max_depth, source.seconds) == (5, 0.0)
    prompt = prompt_of(20)
    for sampling in (SamplingConfig(), SamplingConfig(temperature=1.0, top_p=0.9, seed=3)):
        texts = []
        for shape in (BeamShape(4, 5, 3), BeamShape(1, 2), None):
            config_ = DecodingConfig(
                max_tokens=12, sampling=sampling, draft=shape is not None, beam=shape or BeamShape()
            )
            decoded = list(decode(model, prompt, config_))
            texts.append([one.token for one in decoded])
            records = [one.step for one in decoded if one.step is not None]
            sizes = {len(record.tree.tokens) for record in records}
            assert sizes == ({1} if shape is None else {1 + shape.length})
        assert texts[0] == texts[1] == texts[2]


def test_the_planner_has_no_use_for_width() -> None:
    row = tuple(1 + 0.05 * size for size in SIZES)
    costs = CostModel(SIZES, (64,), (row,), {1: 0.05}, (1.0,))
    shapes = (*candidate_shapes(costs, chains=True), *probe_shapes(costs, chains=True))
    assert shapes
    assert all(shape.width == 1 for shape in shapes)


def test_arguments_are_cut_to_the_rows_kept() -> None:
    """Rows along a path; a chain's masks lose what was not accepted, a tree's are left out."""
    x, mask = mx.arange(24).reshape(1, 4, 6), mx.ones((1, 1, 4, 9), dtype=mx.bool_)
    weight, seen = mx.ones((6, 6)), []
    for branching in (False, True):
        call = ModuleCall(
            run=lambda *args, **kwargs: seen.append((args, kwargs)),
            args=(x, mask[0, 0], "causal", weight), kwargs={"mask": mask},
            batch=1, nodes=4, paths=None, branching=branching,
        )  # fmt: skip
        call.replay(ForwardContext(), [[0, 2, 3]])
    for branching, (args, kwargs) in enumerate(seen):
        assert args[0].tolist() == [[x.tolist()[0][row] for row in (0, 2, 3)]]
        assert args[2] == "causal"
        assert args[3] is weight
        if branching:
            assert args[1] is None
            assert kwargs["mask"] is None
        else:
            assert args[1].shape == (3, 8)
            assert kwargs["mask"].shape == (1, 1, 3, 8)


def test_memory_does_not_grow_with_the_text() -> None:
    model = shared("mamba")
    held = model.make_cache()
    list(decode(model, prompt_of(9), DecodingConfig(max_tokens=4), cache=held))
    before = held.nbytes
    list(decode(model, prompt_of(9), DecodingConfig(max_tokens=60), cache=held))
    assert held.nbytes == before > 0
    layer = held.layers[0]
    assert isinstance(layer, RecurrentCache)
    assert len(layer._steps) <= 2
    assert len(layer._points) <= KEPT_PROMPTS + KEPT_PIECES


@pytest.mark.parametrize(("tail", "replay"), [(0.003, 0.003), (-0.003, 0.0)])
def test_the_replay_is_what_a_rejected_tail_costs(
    tail: float, replay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no gain; and the state stands where it stood before."""
    model = shared("mamba")
    prompt, now = prompt_of(30), [0.0]
    held = prefilled(model, prompt)
    commit, longest = held.commit, max(calibration.REPLAYED)

    def slowly(path: Sequence[int], tokens: Sequence[int]) -> None:
        now[0] += 1.0 if len(path) == longest else 1.0 + tail
        commit(path, tokens)

    with monkeypatch.context() as patch:
        patch.setattr(held, "commit", slowly)
        patch.setattr(calibration.time, "perf_counter", lambda: now[0])
        assert calibration._time_replay(model, held) == pytest.approx(replay)
    assert_holds(model, held, prompt)


@pytest.mark.parametrize(("dearer", "row"), [(4.9, 0.1), (-4.9, 0.0)])
def test_a_row_of_a_path_costs_what_a_tree_takes_longer_than_a_chain(
    dearer: float, row: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight paths of eight rows, of which a chain of as many nodes runs fifteen."""
    now = [0.0]
    monkeypatch.setattr(calibration.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(calibration.time, "sleep", lambda _: None)

    def verify(tree: DraftTree, _: object) -> tuple[mx.array, None]:
        now[0] += 10.0 if tree.leaf_bound == 1 else 10.0 + dearer
        return mx.zeros((len(tree), 2)), None

    model: Any = SimpleNamespace(
        target=SimpleNamespace(verifies="tree", verify=verify), agreed=lambda seconds: seconds
    )
    assert calibration._time_path_row(model, None) == pytest.approx(row)  # type: ignore[arg-type]
    model.target.verifies = "chain"
    assert calibration._time_path_row(model, None) == 0.0  # type: ignore[arg-type]


def test_only_what_recurs_has_its_replay_and_rows_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The replay as a share of a forward over the rows that stay."""
    monkeypatch.setattr(calibration, "_time_replay", lambda *_: 1.0)
    monkeypatch.setattr(calibration, "_time_path_row", lambda *_: 0.5)
    costs, kept = calibrate(shared("mamba")), calibration.REPLAYED[1]
    assert costs.replay == pytest.approx(1.0 / costs.verify_seconds(kept, costs.contexts[0]))
    assert costs.path_row == 0.5
    config = DrafterConfig(hidden_size=64, vocab_size=VOCAB, exit_dim=128, num_draft_layers=1)
    drafter = RecurrentDrafter(config)
    architectures.randomise(drafter, 0)
    attending = SpeculativeModel(architectures.build("llama"), drafter)
    without = calibrate(attending)
    assert (without.replay, without.path_row) == (0.0, 0.0)
