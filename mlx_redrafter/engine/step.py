"""What a step of decoding is: under way, as it went, and as text; and who chooses its shape."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from ..drafting.next_draft import NextDraft
from ..drafting.shape import BeamShape
from ..sampling import Choices
from ..tree import DraftTree, HostTree


@dataclass(frozen=True)
class PendingStep:
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
    ahead: NextDraft | None = None

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
