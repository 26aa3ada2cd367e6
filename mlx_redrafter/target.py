"""The target: an mlx-lm model, seen as (tokens, tree) -> (logits, hidden states).

The model object is mlx-lm's own. Two seams are set into it, per object and without touching its
parameters: its inner module notes the final hidden state it returns, and its rotary modules turn
each node of a draft tree at the position of its depth instead of its row.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

from .cache import PromptCache, TreeCache, Verification
from .errors import RedrafterError
from .tree import DraftTree

INNER_NAMES = ("model", "transformer", "backbone")
EMBEDDING_NAMES = ("embed_tokens", "wte", "tok_embeddings", "embeddings", "embed_in", "embedding")
# Positions that the rotary seam does not see, or attention that a tree mask does not reach.
UNSUPPORTED = {
    "llama4": "it builds its own chunked attention mask",
    "ministral3": "it scales queries by row instead of by depth",
    "afm7": "some of its layers take positions from array shapes",
    "phi3small": "its attention is not causal in mlx-lm",
}


class _Tap:
    """Where the inner module leaves the hidden states of the latest call, (1, n, hidden)."""

    def __init__(self) -> None:
        self.hidden: mx.array | None = None


class Target:
    """An mlx-lm language model that can verify draft trees.

    Attributes:
        model: The mlx-lm model.
        hidden_size: Width of the final hidden state.
        vocab_size: Number of logits.
        refusal: Why trees cannot be verified with this model, or None if they can.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self._inner = _inner_module(model)
        self._embedding = _embedding(self._inner)
        self._tap: _Tap = _tap(self._inner)
        self._verification, rotary = _hook_rotary(model)
        self.refusal = self._find_refusal(rotary)
        probe = mx.zeros((1, 1), dtype=mx.int32)
        logits, hidden = self.teach(probe)  # shapes only; nothing is evaluated
        self.vocab_size = int(logits.shape[-1])
        self.hidden_size = int(hidden.shape[-1])

    @property
    def dtype(self) -> mx.Dtype:
        """The precision of embeddings and hidden states."""
        return self.embed(mx.zeros((1,), dtype=mx.int32)).dtype

    def _find_refusal(self, rotary: int) -> str | None:
        kind = getattr(self.model, "model_type", type(self.model).__module__.rsplit(".", 1)[-1])
        if kind in UNSUPPORTED:
            return f"the architecture '{kind}' cannot verify drafts: {UNSUPPORTED[kind]}"
        for index, layer in enumerate(make_prompt_cache(self.model)):
            if not _is_attention_cache(layer):
                name = type(layer).__name__
                return (
                    f"layer {index} of the architecture '{kind}' keeps a {name}, "
                    "which cannot take a rejected draft back"
                )
        if rotary == 0:
            return f"the architecture '{kind}' has no rotary positions that a draft tree could use"
        return None

    def make_cache(self) -> PromptCache:
        """Empty caches for one conversation.

        Raises:
            RedrafterError: If the model keeps state that these caches cannot hold.
        """
        layers = []
        for layer in make_prompt_cache(self.model):
            if not _is_attention_cache(layer):
                raise RedrafterError(
                    f"This model cannot be run here: {self.refusal}; run it with mlx_lm.chat."
                )
            window = layer.max_size if isinstance(layer, RotatingKVCache) else None
            layers.append(TreeCache(self._verification, window))
        return PromptCache(layers)

    def embed(self, tokens: mx.array) -> mx.array:
        """The input embeddings of tokens, int (...) to (..., hidden_size)."""
        return self._embedding(tokens)

    def prefill(self, tokens: mx.array, cache: PromptCache) -> None:
        """Run committed tokens, int (n,), through the model; only the caches are computed."""
        self.model(tokens[None], cache=cache.layers)

    def verify(self, tree: DraftTree, cache: PromptCache) -> tuple[mx.array, mx.array]:
        """One forward over a tree behind the committed tokens; commits nothing.

        Args:
            tree: n nodes, the root standing right behind the cache's tokens.
            cache: Caches of this target.

        Returns:
            Logits after each node, (n, vocab_size), and final hidden states, (n, hidden_size).
        """
        with self._verification.over(tree):
            logits = self.model(tree.tokens[None], cache=cache.layers)
        return logits[0], self._hidden()[0]

    def teach(self, tokens: mx.array) -> tuple[mx.array, mx.array]:
        """A causal forward without caches.

        Args:
            tokens: int (batch, length).

        Returns:
            Logits (batch, length, vocab_size) and hidden states (batch, length, hidden_size).
        """
        logits = self.model(tokens)
        return logits, self._hidden()

    def _hidden(self) -> mx.array:
        hidden, self._tap.hidden = self._tap.hidden, None
        assert hidden is not None, "the model did not call its inner module"
        return hidden


def _is_attention_cache(layer: Any) -> bool:
    if type(layer) is RotatingKVCache:
        return layer.keep == 0
    return type(layer) is KVCache


def _inner_module(model: nn.Module) -> nn.Module:
    """The module whose output feeds the output rows."""
    outer = model
    while isinstance(getattr(outer, "language_model", None), nn.Module):
        outer = outer.language_model
    for name in INNER_NAMES:
        inner = getattr(outer, name, None)
        if isinstance(inner, nn.Module):
            return inner
    raise RedrafterError(
        f"{type(model).__module__} is not laid out as mlx-lm's language models are (none of "
        f"{', '.join(INNER_NAMES)} in it), so its hidden states cannot be read: use mlx_lm.chat."
    )


def _embedding(inner: nn.Module) -> Any:
    for name in EMBEDDING_NAMES:
        module = getattr(inner, name, None)
        if isinstance(module, nn.Module):
            return module
    raise RedrafterError(
        f"No token embedding was found in {type(inner).__name__}, so no drafter can read it: "
        "use mlx_lm.chat with this model."
    )


def _tap(inner: nn.Module) -> _Tap:
    """Make ``inner`` leave its output in a tap; once per object."""
    existing = getattr(inner, "_redrafter_tap", None)
    if isinstance(existing, _Tap):
        return existing
    inner._redrafter_tap = _Tap()
    # A subclass for this one object: parameter names, isinstance and attributes stay as they were.
    inner.__class__ = _subclass(type(inner), "Tapped", _tapped_call)
    return inner._redrafter_tap


def _hook_rotary(model: nn.Module) -> tuple[Verification, int]:
    """Make every rotary module heed one Verification; return it and the number of modules."""
    rotary = [module for _, module in model.named_modules() if _is_rotary(module)]
    verification = next(
        (m._redrafter_verification for m in rotary if hasattr(m, "_redrafter_verification")),
        Verification(),
    )
    for module in rotary:
        if not hasattr(module, "_redrafter_verification"):
            module._redrafter_verification = verification
            module.__class__ = _subclass(type(module), "Tree", _rotary_call)
    return verification, len(rotary)


def _is_rotary(module: nn.Module) -> bool:
    name = type(module).__name__.lower()
    return "rope" in name or "rotary" in name


def _subclass(base: type, prefix: str, call: Any) -> type:
    return type(prefix + base.__name__, (base,), {"__call__": call, "_redrafter_base": base})


def _tapped_call(self: Any, *args: Any, **kwargs: Any) -> Any:
    output = self._redrafter_base.__call__(self, *args, **kwargs)
    self._redrafter_tap.hidden = output
    return output


def _rotary_call(self: Any, x: mx.array, offset: Any = 0, *args: Any, **kwargs: Any) -> mx.array:
    """Turn (1, heads, n, dim) at one position a node: as a batch of n rows, all of them views."""
    verification: Verification = self._redrafter_verification
    base = self._redrafter_base.__call__
    if verification.tree is None:
        return base(self, x, offset, *args, **kwargs)
    rows = x.transpose(2, 1, 0, 3)
    turned: mx.array = base(self, rows, verification.positions(offset), *args, **kwargs)
    return turned.transpose(2, 1, 0, 3)
