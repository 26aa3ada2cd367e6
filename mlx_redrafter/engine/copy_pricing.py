"""What the engine asks of whoever says how much of a text's copies is verified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..drafting.shape import BeamShape


@dataclass(frozen=True)
class CopyShare:
    """What a step verifies.

    Attributes:
        copied: Copied nodes.
        guessed: Nodes of a draft; 0 leaves the draft out.
    """

    copied: int
    guessed: int


class CopyPricing(Protocol):
    """Who says how many copied tokens to verify.

    All chances it is told are of nodes in the order in which they would be verified, the root left
    out; of sequences that are decoded together, means over the sequences.
    """

    def num_nodes(self, chances: Sequence[float], context: int) -> int:
        """How many of nodes that cost no draft any more to verify; 0 is a plain step."""

    def waits_for_copies(self, first: float, after: Sequence[float], context: int) -> bool:
        """Whether the next step is not to begin before the token before it is known.

        Args:
            first: Chance that this token is the one that would be copied.
            after: If it is, the chances of the copied tokens after it.
            context: Tokens before the step.
        """

    def take_surprise(self, chances: Sequence[float], context: int) -> None:
        """Learn what may be copied after a token that no copy foretold."""

    def share(self, shape: BeamShape, chances: Sequence[float], context: int) -> CopyShare:
        """What to verify of copies and of a draft that would have to be made."""

    def drafts_after(self, whole: float, shape: BeamShape) -> bool:
        """Whether the next step's draft is worth making although copies may go on.

        Args:
            whole: Chance that all of a copied chain is right, and the next step copies on.
            shape: The draft.
        """


# Copied nodes below this chance are no better than what a draft has at the end of its budget.
LEAST_CHANCE = 0.1


@dataclass(frozen=True)
class BudgetedCopies:
    """Shares a fixed number of nodes between copies and guesses, where nothing plans the steps.

    Attributes:
        nodes: Nodes to verify in a step, at most.
    """

    nodes: int

    def num_nodes(self, chances: Sequence[float], context: int) -> int:  # noqa: ARG002
        """Those that are likely enough, as far as the budget reaches."""
        return min(sum(chance >= LEAST_CHANCE for chance in chances), self.nodes)

    def waits_for_copies(self, first: float, after: Sequence[float], context: int) -> bool:
        """Wait for what is likely to be verified."""
        return first >= 0.5 and self.num_nodes(after, context) > 0

    def take_surprise(self, chances: Sequence[float], context: int) -> None:
        """Nothing is learnt of that."""

    def share(self, shape: BeamShape, chances: Sequence[float], context: int) -> CopyShare:  # noqa: ARG002
        """The likeliest nodes of both; a draft's node of rank i is right in about 0.5 / i steps."""
        copied = 0
        while copied < min(len(chances), self.nodes, shape.nodes):
            if chances[copied] <= max(LEAST_CHANCE, 0.5 / (shape.nodes - copied)):
                break
            copied += 1
        return CopyShare(copied, shape.nodes - copied)

    def drafts_after(self, whole: float, shape: BeamShape) -> bool:  # noqa: ARG002
        """Whether copies may well end."""
        return whole < 0.5
