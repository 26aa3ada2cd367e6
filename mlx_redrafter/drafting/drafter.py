"""What draft heads have in common: their output rows, which tokens these stand for, and no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn

from ..errors import RedrafterError
from ..ranges import of_kind
from ..system.device import takes_columns
from .config import DrafterConfig


class OutputRows(nn.Linear):
    """The head's last matrix, from (..., exit_dim) to (..., head_size)."""

    def __call__(self, x: mx.array) -> mx.array:
        """Multiply x; a single row as a column where that is faster."""
        if x.size == x.shape[-1] and takes_columns(self.weight):
            product: mx.array = self.weight @ x.reshape(-1, 1)
            return product.reshape(*x.shape[:-1], -1)
        return super().__call__(x)


if TYPE_CHECKING:
    # mlx.nn is Any to mypy, and so would be every attribute of a class derived from it. What is
    # used of its modules is named here, so that what a kind of head lacks is an error.
    class _Module:
        state: dict[str, Any]
        parameters: Callable[[], dict[str, Any]]
        trainable_parameters: Callable[[], dict[str, Any]]
        update: Callable[[dict[str, Any]], Any]
        load_weights: Callable[[list[tuple[str, mx.array]]], Any]
        set_dtype: Callable[[mx.Dtype], Any]
        freeze: Callable[..., Any]
        train: Callable[[], Any]
        eval: Callable[[], Any]

else:
    _Module = nn.Module


class Drafter(_Module):
    """A draft head: ``kinds.drafter_of`` makes one of the kind that a configuration asks for.

    The embedding is the target's and is passed in as vectors; the drafter owns no copy.
    """

    def __init__(self, config: DrafterConfig):
        super().__init__()
        self.config = of_kind(config, "config", DrafterConfig, "a DrafterConfig")
        self._rows: Callable[[mx.array], mx.array] | None = None
        self._build(config)
        if config.draft_vocab_size is not None:
            # Row i of the head proposes target token draft_tokens[i]; sorted, int32, never trained.
            self.draft_tokens = mx.arange(config.draft_vocab_size, dtype=mx.int32)
            self.freeze(keys=["draft_tokens"], recurse=False)

    def _build(self, config: DrafterConfig) -> None:
        """Make the layers, all but the token map."""
        raise NotImplementedError

    @property
    def remembers(self) -> bool:
        """Whether it looks into a memory of the text, and so reads and learns from whole ones."""
        return self.config.memory_heads is not None

    @property
    def needs_rows(self) -> bool:
        """Whether output rows have to be bound before there are logits."""
        return self.config.shared_rows and self._rows is None

    def bind_rows(self, rows: Callable[[mx.array], mx.array]) -> None:
        """Use output rows that belong to the target, see ``shared_head.share_rows``.

        Args:
            rows: From (..., exit_dim) to (..., head_size). They are no parameter of the drafter.
        """
        self._rows = rows

    def logits_along(self, hidden: mx.array, embeddings: mx.array, depth: int) -> list[mx.array]:
        """Logits of every guess of drafts from every position of texts, fed with the text.

        Args:
            hidden: What the head reads of the target, (B, T, layers * hidden_size).
            embeddings: Target's embeddings of the texts' tokens, (B, T, hidden_size).
            depth: Guesses from each position.

        Returns:
            For k from 1 to depth (B * T - k, head_size), the texts laid end to end: row i is the
            guess after k tokens of a draft whose last verified token is the i-th. Where these k
            tokens are past the end of its text it means nothing.
        """
        raise NotImplementedError

    def _output(self, x: mx.array, layers: list[nn.Module]) -> mx.array:
        for layer in layers:
            x = layer(x)
        if not self.config.shared_rows:
            return x
        if self._rows is None:
            raise RedrafterError(
                "This drafter shares the target's output rows, and none are bound: open it "
                "together with its target, with mlx_redrafter.load."
            )
        return self._rows(x)

    def target_tokens(self, columns: mx.array) -> mx.array:
        """Target token ids of head columns, any shape, int32."""
        if self.config.draft_vocab_size is None:
            return columns.astype(mx.int32)
        return mx.take(self.draft_tokens, columns)

    def draft_columns(self, values: mx.array) -> mx.array:
        """Columns of ``values`` (..., vocab_size) for the head's tokens: (..., head_size)."""
        if self.config.draft_vocab_size is None:
            return values
        return mx.take(values, self.draft_tokens, axis=-1)
