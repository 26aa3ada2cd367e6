"""What a step of decoding is: pending, as it went, and as text."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from ..drafting.next_draft import NextDraft
from ..drafting.shape import BeamShape
from ..sampling import Choices
from ..tree import DraftTree, HostTree


@dataclass(frozen=True)
class PendingStep:
    """One sequence's part of a step whose graph is under way and not read back yet.

    Attributes:
        tree: What is verified.
        choices: The target's choices after its nodes.
        hidden: The final hidden states at its nodes, (n, hidden_size).
        shape: What was drafted, of which ``tree`` may be a part; None is a plain step.
        context: Committed tokens before it.
        started: When it was launched, by ``time.perf_counter``.
        draft_seconds: What its draft takes, measured alone.
        next_draft: The next step's draft, where that is made in this step's graph.
    """

    tree: DraftTree
    choices: Choices
    hidden: mx.array
    shape: BeamShape | None
    context: int
    started: float
    draft_seconds: float
    next_draft: NextDraft | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the outcome is known before it is read: nothing drafted, the root accepted."""
        return len(self.tree) == 1

    @property
    def read_back(self) -> list[mx.array]:
        """What the host reads when the step is over; of a root alone only its token is unknown."""
        arrays = self.choices.arrays
        for tree in (self.tree, self.next_draft.tree if self.next_draft else None):
            if tree is None or tree.known is not None:
                continue
            alone = len(tree) == 1
            arrays += [tree.tokens] if alone else [tree.tokens, tree.parents, tree.log_probs]
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

    @property
    def tokens(self) -> list[int]:
        """What the step adds to the text: the accepted tokens and the target's own."""
        return [self.choices[node] for node in self.path]


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
