"""What a draft head keeps of the verified text: one row a committed token, beside the target's."""

from __future__ import annotations

from typing import Any, Protocol

import mlx.core as mx

from .forward_context import BUFFER_STEP, round_up


class MemoryOwner(Protocol):
    """Whose rows a memory holds: a draft head."""

    def fingerprint(self) -> str:
        """A digest that heads share whose rows are the same."""


class TextMemory:
    """Keys, values and token values of committed tokens, (1, heads, rows, head_dim) each.

    Row j is made of the target's hidden states at token j (key and value) and of the token itself
    (token value). It is read as pairs: the key of token j with its value and the token value of
    token j + 1, so that a query that resembles token j finds what followed it.

    Args:
        owner: Whose rows these are.

    Attributes:
        offset: Tokens held.
        owner: As given.
    """

    def __init__(self, owner: MemoryOwner | None = None) -> None:
        self.owner = owner
        self.offset = 0
        self._buffers: list[mx.array] = []

    def append(self, keys: mx.array, values: mx.array, token_values: mx.array) -> None:
        """Keep the rows of tokens that were committed, (1, heads, n, head_dim) each."""
        start, end = self.offset, self.offset + keys.shape[2]
        rows = [keys, values, token_values]
        self._reserve(rows, end)
        for buffer, new in zip(self._buffers, rows, strict=True):
            buffer[..., start:end, :] = new
        self.offset = end

    def _reserve(self, rows: list[mx.array], count: int) -> None:
        held = self._buffers[0].shape[2] if self._buffers else 0
        if count <= held:
            return
        room = round_up(count, BUFFER_STEP) - held
        blank = [mx.zeros((*x.shape[:2], room, x.shape[3]), dtype=x.dtype) for x in rows]
        if held:
            pairs = zip(self._buffers, blank, strict=True)
            blank = [mx.concatenate([old, new], axis=2) for old, new in pairs]
        self._buffers = blank

    def pairs(self, window: int, following: mx.array) -> tuple[mx.array, mx.array]:
        """The keys and values of the last ``window`` tokens, (1, heads, rows, head_dim) each.

        Args:
            window: Tokens at most.
            following: The token value of the token after the last one, (1, heads, 1, head_dim).
        """
        start, end = max(0, self.offset - window), self.offset
        if not self._buffers:
            return following[..., :0, :], following[..., :0, :]
        keys, values, token_values = self._buffers
        after = mx.concatenate([token_values[..., start + 1 : end, :], following], axis=2)
        return keys[..., start:end, :], values[..., start:end, :] + after

    def copy(self) -> TextMemory:
        """The same rows in a memory of its own; buffers are shared until one is written."""
        made = TextMemory(self.owner)
        made.offset, made._buffers = self.offset, [x[...] for x in self._buffers]
        return made

    def content(self) -> dict[str, Any] | None:
        """The rows as plain data, with their head's digest; None where nobody could read them."""
        if self.owner is None or not self.offset:
            return None
        rows = [buffer[..., : self.offset, :] for buffer in self._buffers]
        return {"head": self.owner.fingerprint(), "offset": self.offset, "rows": rows}

    def take_over(self, content: dict[str, Any]) -> None:
        """Go on from the :meth:`content` of a memory of the same head's."""
        self.offset, self._buffers = content["offset"], content["rows"]

    def rewind(self, length: int) -> None:
        """Forget every token at and after position ``length``."""
        self.offset = min(self.offset, length)

    def reset(self) -> None:
        """Forget everything and free the buffers."""
        self.offset, self._buffers = 0, []

    @property
    def state(self) -> list[mx.array]:
        """The arrays to evaluate."""
        return list(self._buffers)

    @property
    def nbytes(self) -> int:
        """Size of the buffers in bytes."""
        return sum(buffer.nbytes for buffer in self._buffers)
