"""What was drafted, what the target accepted, and how long each part took."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from ..ranges import of_kind

_SUMS = (
    "steps", "drafted", "accepted", "copied", "accepted_copies", "tokens", "draft_seconds",
    "verify_seconds",
)  # fmt: skip


def _add(counts: list[int], index: int, amount: int = 1) -> None:
    counts.extend([0] * (index + 1 - len(counts)))
    counts[index] += amount


@dataclass
class AcceptanceStats:
    """Counts over the steps of one text, or of several after :meth:`merge`.

    A step is one target forward after the prompt's own; the first token of a text comes from the
    prompt's forward and belongs to no step. The token that the target adds at the end of each step
    was not drafted and never counts as accepted.

    Attributes:
        steps: Target forwards.
        drafted: Candidate nodes verified.
        accepted: Drafted tokens that became text.
        copied: Those of ``drafted`` that nothing but a copy of the text proposed.
        accepted_copies: Those of ``accepted`` that nothing but a copy of the text proposed.
        tokens: Tokens of text that steps produced: accepted plus the target's own.
        trials_by_depth: Steps that had a candidate at depth 1, 2, ... and were not cut off above it
            by the end of the text.
        accepted_by_depth: Steps that accepted a candidate at depth 1, 2, ...
        histogram: Steps that accepted 0, 1, 2, ... drafted tokens.
        draft_seconds: Time spent drafting. A step is one graph with one evaluation, so this is the
            drafter's time measured alone, once for each beam shape, times the steps that drafted.
        verify_seconds: The rest of the steps' time.
        last_drafted, last_accepted: The latest step's share of ``drafted`` and ``accepted``.
    """

    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    copied: int = 0
    accepted_copies: int = 0
    tokens: int = 0
    trials_by_depth: list[int] = field(default_factory=list)
    accepted_by_depth: list[int] = field(default_factory=list)
    histogram: list[int] = field(default_factory=list)
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    last_drafted: int = 0
    last_accepted: int = 0

    @property
    def plain_steps(self) -> int:
        """Steps that verified no candidate: plain ones, and those whose draft was not worth it."""
        return self.steps - sum(self.trials_by_depth[:1])

    @property
    def tokens_per_step(self) -> float:
        """Mean tokens of text per target forward; 0 before the first step."""
        return self.tokens / self.steps if self.steps else 0.0

    @property
    def seconds(self) -> float:
        """Time of all steps, drafting included."""
        return self.draft_seconds + self.verify_seconds

    @property
    def tokens_per_second(self) -> float:
        """Tokens of text over the time of the steps that produced them; 0 before the first step."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def acceptance_by_depth(self) -> list[float]:
        """Share of the trials at depth 1, 2, ... in which a candidate there was accepted."""
        pairs = zip(self.accepted_by_depth, self.trials_by_depth, strict=True)
        return [hits / trials if trials else 0.0 for hits, trials in pairs]

    @property
    def by_source(self) -> dict[str, int]:
        """Tokens of steps by who came up with them: guessed, copied, and the target's own."""
        return {
            "guessed": self.accepted - self.accepted_copies,
            "copied": self.accepted_copies,
            "own": self.tokens - self.accepted,
        }

    def record(
        self,
        depths: Sequence[int],
        accepted: int,
        emitted: int,
        *,
        copied: int = 0,
        accepted_copies: int = 0,
        seconds: float = 0.0,
        draft_seconds: float = 0.0,
    ) -> None:
        """Count one step.

        Args:
            depths: Depth of every candidate node, the root left out.
            accepted: Drafted tokens that became text.
            emitted: Tokens of text the step produced: ``accepted`` plus one, or ``accepted`` where
                the end of the text came first.
            copied: Candidate nodes that nothing but a copy proposed.
            accepted_copies: Those of them that became text.
            seconds: How long the step took, its draft included.
            draft_seconds: What its draft takes, measured alone.
        """
        self.steps += 1
        self.drafted += len(depths)
        self.accepted += accepted
        self.copied += copied
        self.accepted_copies += accepted_copies
        self.tokens += emitted
        self.draft_seconds += draft_seconds
        self.verify_seconds += max(0.0, seconds - draft_seconds)
        self.last_drafted, self.last_accepted = len(depths), accepted
        _add(self.histogram, accepted)
        deepest = max(depths, default=0)
        if emitted == accepted:
            deepest = min(deepest, accepted)
        for depth in range(1, deepest + 1):
            _add(self.trials_by_depth, depth - 1)
            _add(self.accepted_by_depth, depth - 1, int(depth <= accepted))

    def merge(self, other: AcceptanceStats) -> None:
        """Add the counts of another text.

        Raises:
            RedrafterError: If they are no counts.
        """
        of_kind(other, "other", AcceptanceStats, "an AcceptanceStats")
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("trials_by_depth", "accepted_by_depth", "histogram"):
            for index, amount in enumerate(getattr(other, name)):
                _add(getattr(self, name), index, amount)
        self.last_drafted, self.last_accepted = other.last_drafted, other.last_accepted

    def snapshot(self) -> AcceptanceStats:
        """A copy that later steps do not change."""
        made = copy(self)  # one for every token that is handed out
        made.trials_by_depth = self.trials_by_depth.copy()
        made.accepted_by_depth = self.accepted_by_depth.copy()
        made.histogram = self.histogram.copy()
        return made

    def to_dict(self) -> dict[str, Any]:
        """Counts and rates, ready for JSON."""
        return {
            "steps": self.steps,
            "plain_steps": self.plain_steps,
            "tokens_per_step": self.tokens_per_step,
            "drafted": self.drafted,
            "accepted": self.accepted,
            "copied": self.copied,
            "by_source": self.by_source,
            "tokens": self.tokens,
            "acceptance_by_depth": self.acceptance_by_depth,
            "trials_by_depth": list(self.trials_by_depth),
            "accepted_by_depth": list(self.accepted_by_depth),
            "histogram": list(self.histogram),
            "draft_seconds": self.draft_seconds,
            "verify_seconds": self.verify_seconds,
        }
