"""The target: an mlx-lm model, seen as (tokens, tree) -> (logits, hidden states).

The model object is mlx-lm's own. Seams are set into it, per object and without touching its
parameters: its inner module notes the final hidden state it returns, its rotary modules turn each
node of a draft tree at the position of its depth instead of its row, and modules with recurrent
state say how to repeat what they did.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from ..cache.batch import BatchCache
from ..cache.batch_tree import BatchTree
from ..cache.composite import OpaqueCache
from ..cache.layer_cache import LayerCache
from ..cache.model_identity import ModelWeights
from ..cache.prompt_cache import PromptCache
from ..cache.quantized import CacheOptions
from ..errors import RedrafterError
from ..system.blas import share_cores
from ..system.device import plans_attention
from ..tree import DraftTree
from . import architectures
from .checks import check_numbers, ranks_like
from .hooks import (
    INNER_NAMES,
    draft_limit,
    embedding_of,
    hook_layer_outputs,
    hook_layers,
    hook_output,
    inner_module,
    position_limit,
    private_arrays,
)
from .layer_caches import is_state, layer_cache, parts_of
from .output_head import Tap, find_output_head, tap_input
from .patching import refuse_copy
from .recurrent_hooks import hook_products
from .refusal import find_refusal, unexplained_logits

# A model of fewer bytes takes about as long to compute one token as the host to build a graph.
SMALL_BYTES = 64 << 20
# Tokens of a prompt that are run at once: attention may need memory for each against all before it.
PREFILL_STEP = 2048


class Observer(Protocol):
    """Reads a prompt's hidden states while it is run through the target."""

    @property
    def layers(self) -> Sequence[int]:
        """Layers whose outputs it wants beside the final hidden states."""

    def observe(self, hidden: mx.array, tokens: mx.array, cache: PromptCache) -> None:
        """Take note of a piece of n tokens that is about to be committed to the cache.

        Args:
            hidden: As of ``Target.verify``, (n, ...).
            tokens: int32 (n,).
            cache: Where the tokens before it are.
        """


class Target:
    """An mlx-lm language model that can verify drafts.

    Args:
        model: As mlx-lm loads it.
        part: Which part of it this process has; see :class:`ModelWeights`.

    Attributes:
        model: The mlx-lm model.
        architecture: Its module in ``mlx_lm.models``.
        hidden_size: Width of the final hidden state.
        vocab_size: Number of logits.
        verifies: "tree" or "chain": what kind of draft one forward can verify; "nothing" if none.
        attends: Whether there are layers that are not recurrent.
        recurrent: Whether layers carry state that is computed path by path.
        max_positions: Tokens that can be fed, where positions come from a table; None if they are
            computed.
        weights: Which its parameters are.
        refusal: Why drafts cannot be verified with this model, or None if they can.

    Raises:
        RedrafterError: If the model is not laid out as mlx-lm's language models are.
    """

    def __init__(self, model: nn.Module, part: str = ""):
        if not isinstance(model, nn.Module):
            raise RedrafterError(
                "The target has to be a model as mlx_lm.load returns it, and is a "
                f"{type(model).__name__}: mlx_redrafter.load opens a path."
            )
        self.model = model
        self.architecture = architectures.architecture_of(model)
        inner = inner_module(model)
        embedding = embedding_of(inner) if inner is not None else None
        if inner is None or embedding is None:
            raise RedrafterError(
                f"{type(model).__module__} is not laid out as mlx-lm's language models are (none "
                f"of {', '.join(INNER_NAMES)} with a token embedding in it), so its hidden states "
                "cannot be read: use mlx_lm.chat."
            )
        self._embedding: Any = embedding
        self._is_small = sum(w.nbytes for _, w in tree_flatten(model.parameters())) < SMALL_BYTES
        raw = make_prompt_cache(model)
        states = [is_state(part) for layer in raw for part in parts_of(layer)]
        self.recurrent, self.attends = any(states), not all(states)
        if self.architecture in architectures.WHOLE:
            inner._redrafter_whole = True
        self._context = hook_layers(model, recurrent=self.recurrent)
        counts_rows = self.architecture in architectures.COUNTS_ROWS
        self._context.pads_keys = plans_attention(self.dtype) and not counts_rows
        self._inner_tap: Tap = hook_output(inner)
        self._draft_limit = draft_limit(model)
        self.max_positions = position_limit(model)
        self.weights = ModelWeights(model, part)
        with self._context.explore():  # shapes only; nothing is evaluated
            self.output_head = find_output_head(model, embedding, self._probe)
            logits, inner_output = self._probe()
        self.weights.ran()
        hook_products(model, self._context)
        self.refusal = self._find_refusal(raw)
        trees = self.architecture in architectures.TREES
        self.verifies = "nothing" if self.refusal else "tree" if trees else "chain"
        self.vocab_size = int(logits.shape[-1])
        head = self.output_head
        self.hidden_size = int(inner_output.shape[-1]) if head is None else head.width
        self.take_cores(2)  # what is not a text's plain step has them all, training for one
        # What modules hold besides parameters, such as frequencies: whatever thread runs first
        # could evaluate only its own.
        mx.eval(private_arrays(model))

    @property
    def dtype(self) -> mx.Dtype:
        """The precision of embeddings and hidden states."""
        return self.embed(mx.zeros((1,), dtype=mx.int32)).dtype

    def check(self, where: object = "The model") -> None:
        """Run one token and look at the outcome: numbers, and hidden states that explain them.

        Where they do not, ``refusal`` says so from then on, and decoding is plain.

        Args:
            where: The file or directory that it is from, for the sentence.

        Raises:
            RedrafterError: If the model computes no numbers; names the tensor.
        """
        logits, hidden = self.verify(DraftTree.root_only(mx.array([0])), self.make_cache())
        check_numbers(self.model, logits, where)
        head = self.output_head
        if self.refusal is None and head is not None and not ranks_like(head, hidden, logits):
            self.verifies, self.refusal = "nothing", unexplained_logits(self.architecture)

    def _find_refusal(self, raw: list[Any]) -> str | None:
        unknown = [(index, one) for index, one in enumerate(raw) if self._layer(one) is None]
        has = {"recurrent": self.recurrent, "attends": self.attends}
        refusal = find_refusal(self.model, unknown, **has)
        if refusal is None and self.output_head is None:
            return unexplained_logits(self.architecture)
        return refusal

    __reduce_ex__ = refuse_copy

    def make_cache(self, max_kv_size: int | None = None) -> PromptCache:
        """Empty caches for one conversation.

        Args:
            max_kv_size: Keep only so many rows a layer, 8 or more, as mlx-lm does where a model
                has no caches of its own kind; such caches are good for plain decoding only.
        """
        max_kv_size = CacheOptions(max_kv_size=max_kv_size).max_kv_size
        made = enumerate(make_prompt_cache(self.model, max_kv_size))
        layers = [self._layer(raw) or OpaqueCache(self._maker(i, max_kv_size)) for i, raw in made]
        return PromptCache(layers, self._draft_limit, self._context, self.weights)

    def check_cache(self, cache: Any) -> None:
        """Refuse a cache that was not made for this model object.

        Raises:
            RedrafterError: If it is another's, or none of this package's.
        """
        if not isinstance(cache, PromptCache):
            raise RedrafterError(
                f"The cache is a {type(cache).__name__}, and mlx-lm's caches cannot take a "
                "rejected draft back: make one with model.make_cache()."
            )
        if cache.owner is not self._context:
            raise RedrafterError(
                "The cache was made with another model, or with another load of this one: make "
                "one with this model's make_cache(), or save(path) that one and load_cache(path)."
            )

    def _layer(self, raw: Any) -> LayerCache | None:
        return layer_cache(raw, self._context, keeps_points=self.recurrent)

    def _maker(self, index: int, max_kv_size: int | None) -> Any:
        return lambda: make_prompt_cache(self.model, max_kv_size)[index]

    def embed(self, tokens: mx.array) -> mx.array:
        """The input embeddings of tokens, int (...) to (..., hidden_size)."""
        return self._embedding(tokens)

    def take_cores(self, rows: int) -> None:
        """Share a CPU's cores for a forward over so many rows.

        Steps of one row overlap with the host's work for the next one. In a small model that takes
        about as long as the forward itself, so the host gets a core.
        """
        share_cores(leave_one=self._is_small and rows == 1)

    def check_layers(self, layers: Sequence[int]) -> None:
        """See that the outputs of layers can be read; shapes only, nothing is evaluated.

        Raises:
            RedrafterError: If there are no such layers, or they return something else than one
                hidden state a token.
        """
        cache, tree = self.make_cache(), DraftTree.root_only(mx.zeros((1,), dtype=mx.int32))
        with self._context.explore():
            self.verify(tree, cache, layers)

    def prefill(
        self, tokens: mx.array, cache: PromptCache, observer: Observer | None = None
    ) -> None:
        """Run committed tokens, int (n,), through the model; only the caches are computed."""
        cache.begin(tokens.shape[0])
        if observer is None:
            with self._context.lock, self.weights.kept():
                self.model(tokens[None], cache=cache.seams)
        else:
            _, hidden = self._forward(tokens[None], cache.seams, observer.layers)
            observer.observe(hidden.squeeze(0), tokens, cache)

    def fill(
        self,
        tokens: Sequence[int],
        cache: PromptCache,
        step_size: int = PREFILL_STEP,
        observer: Observer | None = None,
    ) -> Iterator[int]:
        """Run tokens through the model in pieces of ``step_size``, and commit each.

        Args:
            tokens: What follows the cache's tokens.
            cache: Caches of this target.
            step_size: Tokens run at once.
            observer: Is shown the hidden states of each piece.

        Yields:
            How many are done, after each piece.
        """
        done = 0
        while done < len(tokens):
            piece = list(tokens[done : done + step_size])
            self.prefill(mx.array(piece), cache, observer)
            mx.eval(cache.state)
            cache.extend(piece)
            done += len(piece)
            mx.clear_cache()
            yield done

    def verify(
        self, tree: DraftTree, cache: PromptCache, layers: Sequence[int] = ()
    ) -> tuple[mx.array, mx.array]:
        """One forward over a tree after the committed tokens; commits nothing.

        Args:
            tree: n nodes, the root standing right after the cache's tokens. Where the target
                verifies chains, node i has to follow node i - 1.
            cache: Caches of this target.
            layers: Layers whose outputs are wanted too.

        Returns:
            Logits after each node, (n, vocab_size), and final hidden states, (n, hidden_size),
            after the outputs of the layers: (n, (len(layers) + 1) * hidden_size).
        """
        self.take_cores(len(tree))
        watched = cache.begin(len(tree))
        # A chain is an ordinary piece of text, which costs recurrent modules least.
        chain = self.recurrent and tree.leaf_bound == 1
        branching = self.verifies == "tree" and not chain
        with self._context.verifying(tree, branching=branching, watched=watched):
            logits, hidden = self._forward(tree.tokens[None], cache.seams, layers)
        return logits.squeeze(0), hidden.squeeze(0)

    @property
    def batches(self) -> bool:
        """Whether several texts can share a forward."""
        kind = self.architecture
        single = kind in architectures.UNBATCHED or self._draft_limit is not None
        return self.verifies == "tree" and not single

    def check_batches(self) -> None:
        """Refuse to decode several texts together where they cannot share a forward.

        Raises:
            RedrafterError: If this model's texts have to be decoded one by one.
        """
        if not self.batches:
            raise RedrafterError(
                f"Prompts cannot be decoded together with the architecture '{self.architecture}', "
                "only where each text's rows can be placed by themselves: decode the prompts one "
                "by one."
            )

    def make_batch_cache(self) -> BatchCache:
        """Empty caches for several texts at once; see :meth:`check_batches`."""
        self.check_batches()
        return BatchCache(self.make_cache(), self._context)

    def verify_batch(
        self, trees: Sequence[DraftTree], cache: BatchCache, layers: Sequence[int] = ()
    ) -> tuple[mx.array, mx.array]:
        """One forward over a tree for each text of a batch; commits nothing.

        Args:
            trees: One a text, with equally many nodes.
            cache: Batch caches of this target.
            layers: Layers whose outputs are wanted too.

        Returns:
            Logits after each node, (batch, n, vocab_size), and hidden states as of :meth:`verify`,
            (batch, n, (len(layers) + 1) * hidden_size).
        """
        self.take_cores(len(trees) * len(trees[0]))
        batch = BatchTree.stack(trees, cache.lengths)
        with self._context.verifying(batch, watched=cache.begin(len(batch))):
            return self._forward(batch.tokens, cache.seams, layers)

    def teach(
        self, tokens: mx.array, cache: list[Any] | None = None, layers: Sequence[int] = ()
    ) -> tuple[mx.array, mx.array]:
        """A causal forward from an empty context, or after mlx-lm's own caches.

        Args:
            tokens: int (batch, length).
            cache: As ``make_prompt_cache`` of mlx-lm makes them; filled.
            layers: Layers whose outputs are wanted too.

        Returns:
            Logits (batch, length, vocab_size) and hidden states as of :meth:`verify`,
            (batch, length, (len(layers) + 1) * hidden_size).
        """
        if cache is None and self.architecture in architectures.TAUGHT_WITH_CACHES:
            cache = make_prompt_cache(self.model)
        return self._forward(tokens, cache, layers)

    def _forward(
        self, tokens: mx.array, caches: Any, layers: Sequence[int] = ()
    ) -> tuple[mx.array, mx.array]:
        """Logits and hidden states of layers and at the end, (batch, n, ...) each."""
        with self._context.lock, self.weights.kept():
            taps = [*hook_layer_outputs(self.model, layers), self._tap()]
            logits = self.model(tokens, cache=caches)
            parts = [tap.hidden for tap in taps]
            for tap in taps:
                tap.hidden = None
        final = parts.pop()
        assert final is not None, "the model did not call its output head"
        read = [part for part in parts if part is not None and part.shape == final.shape]
        if len(read) < len(layers):
            raise RedrafterError(
                f"The layers of the architecture '{self.architecture}' do not return one hidden "
                "state a token: use a drafter that reads the final hidden state alone."
            )
        return logits, mx.concatenate([*read, final], axis=-1) if read else final

    def _probe(self) -> tuple[mx.array, mx.array]:
        """Logits of a token and what the inner module made of it, (1, 1, ...); not evaluated."""
        cache, tree = self.make_cache(), DraftTree.root_only(mx.zeros((1,), dtype=mx.int32))
        watched = cache.begin(1)
        with self._context.verifying(tree, branching=False, watched=watched):
            logits = self.model(tree.tokens[None], cache=cache.seams)
        assert self._inner_tap.hidden is not None, "the model did not call its inner module"
        return logits, self._inner_tap.hidden

    def _tap(self) -> Tap:
        """Where the hidden states are left: at the output head where there is a layer, else inside.

        The layer may have been replaced since, by a quantised one, say; then it has no tap yet.
        """
        module = self.output_head.module if self.output_head else None
        return self._inner_tap if module is None else tap_input(module)
