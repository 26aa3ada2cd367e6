"""What a step of decoding is: under way, as it went, and as text; and who chooses its shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx

from .ahead import AheadDraft
from .beam import BeamShape
from .sampling import Choices
from .tree import DraftTree, HostTree


@dataclass(frozen=True)
class Flight:
    """A step whose graph is under way: node outputs, not yet read back.

    Attributes:
        tree: What is verified.
        choices: The target's choices after its nodes.
        hidden: The final hidden states at its nodes, (n, hidden_size).
        shape: What was drafted, of which ``tree`` may be a part; None is a plain step.
        started: When it was launched.
        draft_seconds: What its draft takes, measured alone.
        ahead: The next step's draft, where that is made in this step's graph.
    """

    tree: DraftTree
    choices: Choices
    hidden: mx.array
    shape: BeamShape | None
    started: float
    draft_seconds: float
    ahead: AheadDraft | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the outcome is known before it is read: nothing drafted, the root accepted."""
        return len(self.tree) == 1

    @property
    def read_back(self) -> list[mx.array]:
        """What the host reads when the step is over; of a root alone only its token is unknown."""
        arrays = [array for array in self.choices if array is not None]
        for tree in (self.tree, self.ahead.tree if self.ahead else None):
            if tree is not None:
                known = len(tree) == 1
                arrays += [tree.tokens] if known else [tree.tokens, tree.parents, tree.log_probs]
        return arrays


@dataclass(frozen=True)
class StepRecord:
    """One step as it went, for those who want to look at it.

    Attributes:
        tree: What was verified.
        choices: The target's choice after each node.
        path: The accepted nodes, the root (0) first.
    """

    tree: HostTree
    choices: tuple[int, ...]
    path: tuple[int, ...]

    @property
    def drafted(self) -> int:
        """Candidates verified."""
        return len(self.tree.tokens) - 1

    @property
    def accepted(self) -> int:
        """Candidates on the accepted path."""
        return len(self.path) - 1


@dataclass(frozen=True)
class DecodedToken:
    """One token of text.

    Attributes:
        token: Its id.
        from_draft: Whether the drafter had guessed it.
        finish_reason: "stop" for an end-of-sequence token, "length" for the last of max_tokens.
        step: The step that produced it; None for the first token, which the prompt's own forward
            produced.
    """

    token: int
    from_draft: bool
    finish_reason: str | None
    step: StepRecord | None


class ShapePlanner(Protocol):
    """Chooses what to draft, step by step, and learns from how it went."""

    @property
    def costs(self) -> DraftCosts:
        """What drafts cost."""

    @property
    def gave_up(self) -> bool:
        """Whether drafts do not pay, so that steps are plain for now."""

    def for_batch(self, texts: int) -> ShapePlanner:
        """Who plans the steps that so many texts take together; of one text the planner itself."""

    def begin(self) -> None:
        """A text begins."""

    @property
    def drafts_ahead(self) -> bool:
        """Whether drafts are to be made in the graph of the step before them."""

    def next_shape(self, context: int) -> BeamShape | None:
        """The shape of the next step behind ``context`` tokens; None is a plain step.

        Asked for after a step has been observed; before that behind a plain step, and where it
        drafts ahead. Not taken where the text turns out to end.
        """

    def worth(self, shape: BeamShape, tree: HostTree, context: int) -> int:
        """How many of a draft's nodes to verify, from the first on; asked where it drafts ahead."""

    def observe(
        self, shape: BeamShape | None, records: Sequence[StepRecord], seconds: float, context: int
    ) -> None:
        """Take note of a step: its shape, how it went for each text, its time and context."""


class DraftCosts(Protocol):
    """What drafts cost."""

    def draft_seconds(self, shape: BeamShape) -> float:
        """Seconds of a draft of that shape."""
