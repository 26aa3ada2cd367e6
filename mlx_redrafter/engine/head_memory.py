"""How a draft head follows the texts that it drafts for: what it reads, keeps and sees of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn

from ..cache.forward_context import BUFFER_STEP, round_up
from ..cache.model_identity import fingerprint
from ..cache.prompt_cache import PromptCache
from ..cache.text_memory import TextMemory
from ..drafting.memory_drafter import MemoryDrafter, MemoryView
from ..tree import DraftTree


class HeadMemory:
    """A head with a memory, and the target's embedding; see ``MemoryDrafter``.

    Args:
        head: The head as drafts use it.
        embed: The target's input embedding, int (...) to (..., hidden_size).
        window: Tokens that a draft sees of a text.
        padded: Whether drafts are compiled, which would happen again for every number of rows.
        weights: The head as it is saved, by whose numbers saved memories are known.
    """

    def __init__(
        self,
        head: MemoryDrafter,
        embed: Callable[[mx.array], mx.array],
        window: int,
        *,
        padded: bool,
        weights: nn.Module,
    ):
        self._head = head
        self._embed = embed
        self._window = window
        self._padded = padded
        self._weights = weights

    @property
    def layers(self) -> Sequence[int]:
        """Layers of the target whose outputs the head reads."""
        return self._head.config.target_layers

    def open(self, cache: PromptCache) -> None:
        """Let a cache keep what the head needs; what it holds already is prefilled again."""
        if cache.memory is None or cache.memory.owner is not self:
            cache.memory = TextMemory(self)

    def fingerprint(self) -> str:
        """See ``MemoryOwner``; by the head's configuration and weights."""
        config = json.dumps(self._head.config.to_dict(), sort_keys=True)
        return f"{fingerprint(self._weights)} {config}"

    def fused(self, hidden: mx.array) -> mx.array:
        """What drafts start from, (..., state_size), of hidden states of the target's layers."""
        return self._head.fused(hidden)

    def observe(self, hidden: mx.array, tokens: mx.array, cache: PromptCache) -> None:
        """Keep n prompt tokens; see ``target.Observer``."""
        self.keep(self.fused(hidden), tokens, cache)

    def keep(self, states: mx.array, tokens: mx.array, cache: PromptCache) -> None:
        """Keep tokens that are about to be committed.

        Args:
            states: Fused hidden states at them, (n, state_size).
            tokens: int32 (n,).
            cache: Their text's. Where its memory lacks earlier tokens nothing is kept: they will
                be read again when the text is resumed.
        """
        memory = _memory_of(cache)
        if memory.offset != len(cache):
            return
        embeddings = self._embed(tokens)
        memory.append(*self._head.remembered(states[None], embeddings[None], memory.offset))

    def view(self, cache: PromptCache, root: mx.array) -> MemoryView:
        """What a draft from ``root``, int (1,), sees: every committed token and what followed."""
        memory = _memory_of(cache)
        keys, values = memory.pairs(self._window, self._token_values(root))
        position = mx.array([memory.offset], dtype=mx.int32)
        return self._room(MemoryView(keys, values, None, position))

    def blank_view(self, kind: mx.Dtype) -> MemoryView:
        """What a draft might see, to time drafts with."""
        config = self._head.config
        count = min(self._window, BUFFER_STEP)
        shape = (1, config.memory_heads or 0, count, config.memory_head_dim or 0)
        rows = mx.zeros(shape, dtype=kind)
        return self._room(MemoryView(rows, rows, None, mx.array([count], dtype=mx.int32)))

    def next_view(
        self, cache: PromptCache, tree: DraftTree, states: mx.array, end: mx.array, root: mx.array
    ) -> MemoryView:
        """What a draft sees that begins where a tree under verification will end.

        Args:
            cache: With the tokens before the tree's root.
            tree: n nodes.
            states: Fused hidden states at them, (n, state_size).
            end: The accepted leaf, int32 ().
            root: The token chosen after it, int32 (1,).
        """
        memory = _memory_of(cache)
        committed = self.view(cache, tree.tokens[:1])
        positions = tree.positions(memory.offset)
        rows = self._head.remembered(states[None], self._embed(tree.tokens)[None], positions[None])
        # A node's parent with the node as what followed; and the leaf with the new root.
        source = mx.concatenate([tree.parents[1:], end[None]])
        following = self._token_values(mx.concatenate([tree.tokens[1:], root.astype(mx.int32)]))
        on_path = mx.take(tree.ancestors, end, axis=0)[1:]
        seen = mx.concatenate([on_path, mx.array([True])])[None, None, None]
        depth = mx.take(tree.depths, end)
        count = committed.keys.shape[2]
        # The window moves on with the path.
        before = mx.arange(count) > min(self._window, memory.offset) - self._window + depth
        before = before[None, None, None]
        if committed.mask is not None:
            before = before & committed.mask
        return MemoryView(
            mx.concatenate([committed.keys, mx.take(rows.keys, source, axis=2)], axis=2),
            mx.concatenate(
                [committed.values, mx.take(rows.values, source, axis=2) + following], axis=2
            ),
            mx.concatenate([before, seen], axis=-1),
            committed.position + depth + 1,
        )

    def _token_values(self, tokens: mx.array) -> mx.array:
        return self._head.token_values(self._embed(tokens)[None])

    def _room(self, view: MemoryView) -> MemoryView:
        count = view.keys.shape[2]
        room = round_up(count, BUFFER_STEP) - count
        if not self._padded:
            return view
        pads = [(0, 0), (0, 0), (0, room), (0, 0)]
        mask = (mx.arange(count + room) < count)[None, None, None]
        return MemoryView(mx.pad(view.keys, pads), mx.pad(view.values, pads), mask, view.position)


def _memory_of(cache: PromptCache) -> TextMemory:
    assert cache.memory is not None, "the cache was not opened for a head with a memory"
    return cache.memory
