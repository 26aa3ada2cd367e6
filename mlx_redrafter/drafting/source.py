"""What a draft source is, and what it is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import mlx.core as mx

from ..errors import RedrafterError
from ..tree import DraftTree
from .memory_drafter import MemoryView

# What a source has besides that it proposes.
_HEARING = ("lookback", "together", "begin", "accepted")


@dataclass(frozen=True)
class DraftInput:
    """What a draft source may look at.

    Attributes:
        root: The last chosen token, int32 (1,).
        hidden: The target's final hidden state from which the root was chosen, (hidden_size,); for
            a head with a memory its fused hidden states, (state_size,).
        noise: Gumbel noise of the next positions, row d for the token after depth d,
            (>= length, vocab_size), as far as the draft should follow it; None when greedy.
        text: The tokens before the root.
        before: The last of these as the drafter reads them, int32 (lookback,), -1 where there is
            none: in place of ``text`` where they are known on the device only.
        memory: What a head with a memory sees of the text, for a batch of one; None for others.
    """

    root: mx.array
    hidden: mx.array
    noise: mx.array | None
    text: Sequence[int] = ()
    before: mx.array | None = None
    memory: MemoryView | None = None


class DraftSource(Protocol):
    """Anything that proposes continuations of a text, as a tree.

    A model's source is asked once for each text for the source of that text (:meth:`begin`); this
    one proposes and hears what became of it. Several sources of one text are combined into one
    tree, see :func:`combine`. The first three members are enough for :class:`SpeculativeModel`,
    which puts :class:`ProposingSource` around a source that has none of the others.
    """

    @property
    def max_depth(self) -> int:
        """No proposed node is deeper."""

    @property
    def seconds(self) -> float:
        """Time of one call measured alone; 0 if not measured."""

    def __call__(self, state: DraftInput) -> DraftTree:
        """Propose a tree whose root is ``state.root``; nothing may be evaluated in the call."""

    @property
    def lookback(self) -> int | None:
        """How many tokens before the root are looked at, where that is all it needs of the text.

        Such a source may draft in the graph of the step before, where its input is known on the
        device only. None: it needs ``DraftInput.text``, or the root on the host.
        """

    def together(self, states: Sequence[DraftInput]) -> list[DraftTree]:
        """Propose for several texts that share this source: a tree for each."""

    def begin(self, prompt: Sequence[int]) -> DraftSource:
        """The source for one text, whose tokens so far are ``prompt``, the first root included.

        A source that remembers nothing of a text is its own.
        """

    def accepted(self, tokens: Sequence[int]) -> None:
        """Hear the tokens that a step added to the text: the accepted ones and the target's own."""


class Proposer(Protocol):
    """The first half of a DraftSource: it proposes, and hears nothing."""

    @property
    def max_depth(self) -> int:
        """See DraftSource."""

    @property
    def seconds(self) -> float:
        """See DraftSource."""

    def __call__(self, state: DraftInput) -> DraftTree:
        """See DraftSource."""


class ProposingSource:
    """A DraftSource that is given its proposals by a :class:`Proposer` and remembers nothing."""

    lookback: int | None = None

    def __init__(self, propose: Proposer):
        self._propose = propose

    @property
    def max_depth(self) -> int:
        """The proposer's."""
        return self._propose.max_depth

    @property
    def seconds(self) -> float:
        """The proposer's."""
        return self._propose.seconds

    def __call__(self, state: DraftInput) -> DraftTree:
        """The proposer's tree."""
        return self._propose(state)

    def together(self, states: Sequence[DraftInput]) -> list[DraftTree]:
        """One tree after the other."""
        return [self(state) for state in states]

    def begin(self, prompt: Sequence[int]) -> DraftSource:  # noqa: ARG002
        """Itself."""
        return self

    def accepted(self, tokens: Sequence[int]) -> None:
        """Nothing is remembered."""


class SourceAround:
    """What sources have in common that change or check the proposals of another."""

    def __init__(self, source: DraftSource):
        self._source = source

    @property
    def max_depth(self) -> int:
        """The other's."""
        return self._source.max_depth

    @property
    def seconds(self) -> float:
        """The other's."""
        return self._source.seconds

    def accepted(self, tokens: Sequence[int]) -> None:
        """Tell the other."""
        self._source.accepted(tokens)


def proposes(given: Any) -> bool:
    """Whether something has the members of a :class:`Proposer`."""
    return callable(given) and all(hasattr(given, name) for name in ("max_depth", "seconds"))


def as_source(source: DraftSource | Proposer) -> DraftSource:
    """The same source with all members of a DraftSource.

    Raises:
        RedrafterError: If it has some of the members that are more than proposing, but not all.
    """
    missing = [name for name in _HEARING if not hasattr(source, name)]
    if not missing:
        return cast("DraftSource", source)
    if len(missing) < len(_HEARING):
        there = " and ".join(name for name in _HEARING if name not in missing)
        raise RedrafterError(
            f"The draft source {type(source).__name__} has {there}, but no "
            f"{' and no '.join(missing)}: give it all of these, or none, to propose only."
        )
    return ProposingSource(source)


def last_tokens(text: Sequence[int], count: int) -> list[int]:
    """The last ``count`` tokens, with -1 for each that there is not, which stand first."""
    found = list(text[-count:])
    return [-1] * (count - len(found)) + found
