"""What a draft source is, and what it is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx

from ..tree import DraftTree


@dataclass(frozen=True)
class DraftInput:
    """What a draft source may look at.

    Attributes:
        root: The last chosen token, int32 (1,).
        hidden: The target's final hidden state from which the root was chosen, (hidden_size,).
        noise: Gumbel noise of the next positions, row d for the token after depth d,
            (>= length, vocab_size), as far as the draft should follow it; None when greedy.
        text: The tokens before the root.
        before: The last of these as the drafter reads them, int32 (lookback,), -1 where there is
            none: in place of ``text`` where they are known on the device only.
    """

    root: mx.array
    hidden: mx.array
    noise: mx.array | None
    text: Sequence[int] = ()
    before: mx.array | None = None


class DraftSource(Protocol):
    """Anything that proposes a tree of continuations; nothing may be evaluated in the call."""

    @property
    def max_depth(self) -> int:
        """No proposed node is deeper."""

    @property
    def seconds(self) -> float:
        """Time of one call measured alone; 0 if not measured."""

    def __call__(self, state: DraftInput) -> DraftTree:
        """Propose a tree whose root is ``state.root``."""


def last_tokens(text: Sequence[int], count: int) -> list[int]:
    """The last ``count`` tokens, with -1 for each that there is not, which stand first."""
    found = list(text[-count:])
    return [-1] * (count - len(found)) + found
