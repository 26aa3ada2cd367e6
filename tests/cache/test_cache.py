from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models.cache import can_trim_prompt_cache

from mlx_redrafter.cache import attention as cache_module
from mlx_redrafter.cache.attention import REWIND_MARGIN, ChunkedTreeKVCache, TreeKVCache
from mlx_redrafter.cache.forward_context import ForwardContext
from mlx_redrafter.cache.prompt_cache import PromptCache
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.tree import DraftTree

HEADS, DIMS = 2, 3


def rows(values: Sequence[float]) -> mx.array:
    """Keys that can be told apart: row i is filled with values[i]."""
    column = mx.array(list(values), dtype=mx.float32)[None, None, :, None]
    return mx.broadcast_to(column, (1, HEADS, len(values), DIMS))


def put(cache: TreeKVCache, values: Sequence[float]) -> list[float]:
    """Write rows; return those that attention gets."""
    keys, fetched = cache.update_and_fetch(rows(values), rows([-value for value in values]))
    assert mx.array_equal(keys, -fetched)
    assert keys.shape[1:2] + keys.shape[3:] == (HEADS, DIMS)
    return keys[0, 0, :, 0].tolist()


def new(window: int | None = None) -> tuple[TreeKVCache, ForwardContext]:
    context = ForwardContext()
    return TreeKVCache(context, window), context


def test_committed_rows_come_back_in_order() -> None:
    cache, _ = new()
    assert put(cache, [1, 2, 3]) == [1, 2, 3]
    assert put(cache, [4]) == [1, 2, 3, 4]
    assert cache.offset == 4


def test_a_window_hands_out_only_what_can_be_seen() -> None:
    cache, _ = new(window=4)
    assert put(cache, [1, 2, 3, 4, 5]) == [1, 2, 3, 4, 5]
    assert put(cache, [6]) == [3, 4, 5, 6]
    assert put(cache, [7, 8]) == [4, 5, 6, 7, 8]
    assert cache.offset == 8


@pytest.mark.parametrize("window", [None, 4])
def test_rows_under_verification_are_not_committed(window: int | None) -> None:
    cache, context = new(window)
    put(cache, [1, 2, 3])
    tree = DraftTree.from_parents([0, 0, 0], [-1, 0, 0])
    for _ in range(2):
        with context.verifying(tree):
            assert put(cache, [7, 8, 9]) == [1, 2, 3, 7, 8, 9]
        assert cache.offset == 3
    assert put(cache, [4]) == [1, 2, 3, 4]


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("path", [[0], [0, 1, 2], [0, 2, 4], [0, 3], [0, 4, 1]])
def test_commit_keeps_the_path(window: int | None, path: list[int]) -> None:
    cache, context = new(window)
    put(cache, [1, 2, 3])
    with context.verifying(DraftTree.from_parents([0] * 5, [-1, 0, 0, 0, 0])):
        put(cache, [10, 11, 12, 13, 14])
    cache.commit(path)
    held = [1, 2, 3, *(10 + node for node in path)]
    assert cache.offset == len(held)
    assert put(cache, [4]) == [*held, 4][-(window or 100) :]


def test_buffers_grow_in_blocks() -> None:
    cache, _ = new()
    assert cache.nbytes == 0
    sizes = set()
    for _ in range(700):
        put(cache, [1])
        assert cache.keys is not None
        sizes.add(cache.keys.shape[2])
    assert sizes == {256, 512, 768}
    assert cache.nbytes == 2 * HEADS * DIMS * 4 * 768


def test_a_windows_buffer_stays_bounded() -> None:
    cache, _ = new(window=10)
    put(cache, range(600))
    largest = 0
    for value in range(600, 2500):
        seen = put(cache, [value])
        assert seen == list(range(value - 9, value + 1))
        assert cache.keys is not None
        largest = max(largest, cache.keys.shape[2])
        # The window and the margin, if the text had them, can be taken back to.
        assert cache.can_rewind(value + 1 - REWIND_MARGIN)
    assert largest <= 768
    assert cache.keys is not None
    assert cache.keys.shape[2] <= 9 + REWIND_MARGIN + 256


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(data=st.data(), window=st.none() | st.integers(1, 12))
def test_any_sequence_of_operations(data: st.DataObject, window: int | None) -> None:
    """Appending, verifying, committing and rewinding against a list of the rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TreeKVCache, "step", 4)
        patch.setattr(cache_module, "REWIND_MARGIN", 5)
        cache, context = new(window)
        held: list[float] = []
        longest = 0  # what a full buffer forgot, it forgot behind this
        fresh = iter(range(1, 10_000))
        for _ in range(data.draw(st.integers(1, 20))):
            action = data.draw(st.sampled_from(["append", "verify", "rewind"]))
            if action == "append":
                values = [next(fresh) for _ in range(data.draw(st.integers(1, 9)))]
                visible = held if window is None else held[max(0, len(held) - window + 1) :]
                assert put(cache, values) == visible + values
                held += values
            elif action == "verify":
                n = data.draw(st.integers(1, 9))
                values = [next(fresh) for _ in range(n)]
                visible = held if window is None else held[max(0, len(held) - window + 1) :]
                with context.verifying(DraftTree.from_parents([0] * n, [-1, *[0] * (n - 1)])):
                    assert put(cache, values) == visible + values
                path = [0, *sorted(data.draw(st.sets(st.integers(1, max(1, n - 1)))))]
                path = [node for node in path if node < n][: data.draw(st.integers(0, n))]
                if path:
                    cache.commit(path)
                held += [values[node] for node in path]
            else:
                length = data.draw(st.integers(0, len(held)))
                if length >= longest - 5:
                    assert cache.can_rewind(length)
                if cache.can_rewind(length):
                    cache.rewind(length)
                    held = held[:length]
            longest = max(longest, len(held))
            assert cache.offset == len(held)


@pytest.mark.parametrize(
    ("window", "length", "can"),
    [(None, 0, True), (None, 20, True), (None, 21, False), (4, 20, True), (4, 3, True)],
)
def test_can_rewind(window: int | None, length: int, can: bool) -> None:
    cache, _ = new(window)
    put(cache, range(20))
    assert cache.can_rewind(length) is can


def test_a_window_cannot_go_back_to_what_it_forgot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TreeKVCache, "step", 8)
    monkeypatch.setattr(cache_module, "REWIND_MARGIN", 4)
    cache, _ = new(window=4)
    for value in range(30):
        put(cache, [value])
    reachable = [length for length in range(31) if cache.can_rewind(length)]
    assert reachable == list(range(reachable[0], 31))
    assert 0 < reachable[0] <= 26
    cache.rewind(reachable[0])
    first = reachable[0]
    assert put(cache, [99]) == [*range(first - 3, first), 99]


def mask(cache: TreeKVCache, n: int, **options: bool) -> list[list[bool]]:
    made = cache.make_mask(n, **options)
    assert isinstance(made, mx.array)
    return np.array(made).astype(bool).tolist()


def test_masks_of_committed_rows_are_mlx_lms() -> None:
    cache, _ = new()
    assert cache.make_mask(1) is None
    assert cache.make_mask(3) == "causal"
    put(cache, range(5))
    assert cache.make_mask(1) is None
    assert cache.make_mask(3) == "causal"
    assert mask(cache, 2, return_array=True) == [[True] * 6 + [False], [True] * 7]


def test_masks_of_windows() -> None:
    cache, _ = new(window=3)
    assert cache.make_mask(3) == "causal"
    assert mask(cache, 4) == [
        [True, False, False, False],
        [True, True, False, False],
        [True, True, True, False],
        [False, True, True, True],
    ]
    put(cache, range(10))
    assert cache.make_mask(1) is None
    assert mask(cache, 2) == [[True, True, True, False], [False, True, True, True]]


def test_masks_of_trees() -> None:
    """Row by row: the committed prefix, then ancestors and self; cut by position for windows."""
    tree = DraftTree.from_parents([0] * 5, [-1, 0, 0, 2, 3])
    ancestors = [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 0, 1, 0, 0],
        [1, 0, 1, 1, 0],
        [1, 0, 1, 1, 1],
    ]
    cache, context = new()
    put(cache, range(3))
    with context.verifying(tree):
        assert mask(cache, 5) == [[True] * 3 + [bool(x) for x in row] for row in ancestors]
    cache, context = new(window=3)
    put(cache, range(7))
    with context.verifying(tree):
        assert mask(cache, 5) == [
            [bool(x) for x in row]
            for row in (
                [1, 1, 1, 0, 0, 0, 0],
                [0, 1, 1, 1, 0, 0, 0],
                [0, 1, 1, 0, 1, 0, 0],
                [0, 0, 1, 0, 1, 1, 0],
                [0, 0, 0, 0, 1, 1, 1],
            )
        ]
    assert cache.make_mask(1) is None


def test_padded_keys() -> None:
    """Attention is given so many rows that their number seldom changes; none too many is seen."""
    tree = DraftTree.from_parents([0, 0], [-1, 0])
    for window in (None, 3):
        cache, context = new(window)
        context.pads_keys = True
        put(cache, range(5))
        seen = 5 if window is None else 2
        with context.verifying(tree):
            assert mask(cache, 2)[0] == [True] * seen + [True, False] + [False] * (254 - seen)
            assert put(cache, [8, 9])[: seen + 2] == [*range(5), 8, 9][-seen - 2 :]
            assert cache.keys_and_values()[0].shape[2] == 256
        with context.verifying(DraftTree.root_only(mx.array([1]))):
            assert len(put(cache, [7])) == seen + 1


def test_padded_keys_of_a_long_text() -> None:
    tree = DraftTree.from_parents([0, 0], [-1, 0])
    context = ForwardContext()
    context.pads_keys = True
    whole, windowed, chunked = (
        TreeKVCache(context), TreeKVCache(context, 257), ChunkedTreeKVCache(context, 300)
    )  # fmt: skip
    for cache, before in ((whole, 0), (windowed, 256), (chunked, 300)):
        for value in range(0, 4100, 2):
            with context.verifying(tree):
                seen = min(value, before or value)
                rows, shown = put(cache, [value, value + 1]), mask(cache, 2)[0]
                assert rows[: seen + 2] == list(range(value - seen, value + 2))
                assert len(rows) == len(shown)
                assert sum(shown[seen + 1 :]) == 0
                assert len(rows) % 256 == 0
                assert len(rows) < 1.25 * (seen + 2) + 256
            cache.commit([0, 1])
        assert (cache.keys.shape[2] % 256 == 0) == (cache is whole)


def test_a_padded_length_stays_for_long() -> None:
    context = ForwardContext()
    context.pads_keys = True
    lengths = [context.padded(rows) for rows in range(1, 32769)]
    assert len(set(lengths)) == 8 + 4 * 4  # of 256 up to 2,048, then four a doubling
    assert all(length >= rows for rows, length in enumerate(lengths, 1))


def test_a_window_given_for_a_layer_that_keeps_everything() -> None:
    cache, context = new()
    put(cache, range(3))
    with context.verifying(DraftTree.from_parents([0, 0], [-1, 0])):
        made = cache.make_mask(2, window_size=2)
    assert made is not None
    assert np.array(made).tolist() == [
        [False, False, True, True, False],
        [False, False, False, True, True],
    ]


def test_positions_of_nodes() -> None:
    context = ForwardContext()
    with context.verifying(DraftTree.from_parents([0] * 4, [-1, 0, 0, 2])):
        assert context.positions(10).tolist() == [10, 11, 11, 12]
        assert context.positions(3).tolist() == [3, 4, 4, 5]
    with context.verifying(DraftTree.from_parents([0] * 2, [-1, 0])):
        assert context.positions(10).tolist() == [10, 11]


def test_a_lone_root_needs_no_mask() -> None:
    cache, context = new(window=3)
    put(cache, range(5))
    with context.verifying(DraftTree.root_only(mx.array([1]))):
        assert cache.make_mask(1) is None
        assert put(cache, [9]) == [3, 4, 9]
    assert cache.offset == 5


def prompt_cache(tokens: list[int], window: int | None = None) -> PromptCache:
    context = ForwardContext()
    cache = PromptCache([TreeKVCache(context), TreeKVCache(context, window)])
    for layer in cache.layers:
        put(layer, tokens)
    cache.extend(tokens)
    return cache


@pytest.mark.parametrize(
    ("held", "prompt", "shared"),
    [
        ([1, 2, 3], [1, 2, 3, 4], 3),
        ([1, 2, 3], [1, 2, 3], 2),
        ([1, 2, 3], [1, 2], 1),
        ([1, 2, 3], [1, 9, 3, 4], 1),
        ([1, 2, 3], [9, 2, 3, 4], 0),
        ([1, 2, 3], [1], 0),
    ],
)
def test_reuse_goes_back_to_the_first_difference(
    held: list[int], prompt: list[int], shared: int
) -> None:
    cache = prompt_cache(held)
    assert cache.reuse(prompt) == shared
    assert cache.tokens == held[:shared]
    assert {layer.offset for layer in cache.layers} == {shared}


def test_reuse_starts_over_where_a_window_has_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TreeKVCache, "step", 8)
    monkeypatch.setattr(cache_module, "REWIND_MARGIN", 4)
    cache = prompt_cache([1], window=4)
    for token in range(2, 40):
        for layer in cache.layers:
            put(layer, [token])
        cache.extend([token])
    assert cache.reuse([*range(1, 39), 99, 98]) == 38
    assert cache.reuse([*range(1, 10), 99, 98]) == 0
    assert (len(cache), cache.nbytes) == (0, 0)


def test_going_back_to_beyond_the_end_forgets_nothing() -> None:
    cache = prompt_cache([1, 2, 3], window=4)
    cache.rewind(1000)
    assert cache.tokens == [1, 2, 3]
    assert {layer.offset for layer in cache.layers} == {3}
    assert cache.reachable(1000) == 3


def test_reset_frees_the_buffers() -> None:
    cache = prompt_cache([1, 2, 3], window=4)
    assert cache.nbytes > 0
    assert [len(state) for state in cache.state] == [2, 2]
    cache.reset()
    assert (cache.tokens, cache.nbytes, cache.state) == ([], 0, [(), ()])
    assert put(cache.layers[1], [7]) == [7]


def test_commit_notes_tokens_and_rows() -> None:
    cache = prompt_cache([1, 2, 3])
    for layer in cache.layers:
        with layer._context.verifying(DraftTree.from_parents([0] * 3, [-1, 0, 0])):
            put(layer, [10, 11, 12])
    cache.commit([0, 2], [40, 42])
    assert cache.tokens == [1, 2, 3, 40, 42]
    assert len(cache) == 5
    assert put(cache.layers[0], [5]) == [1, 2, 3, 10, 12, 5]


@pytest.mark.parametrize("function", [can_trim_prompt_cache, pickle.dumps])
def test_mlx_lms_functions_for_caches_and_pickling_are_refused(function: Any) -> None:
    with pytest.raises(RedrafterError, match=r"save\(path\)"):
        function(PromptCache([]))
