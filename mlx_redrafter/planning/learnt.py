"""What planners learn of how drafts are accepted, whatever steps cost."""

from __future__ import annotations

from collections.abc import Iterable

from ..drafting.copy_memory import CopyMemory
from ..drafting.recorded import RecordedDrafts
from ..engine.step import StepRecord
from ..engine.watch import WatchedDraft
from ..ranges import kind_or_none
from .acceptance import AcceptanceModel
from .forecast import TreeMemory


class Learnt:
    """Shared by the planners of all batch sizes.

    Args:
        recorded: How drafts went when the head was trained, to begin with.

    Attributes:
        acceptance: How likely nodes of each kind are accepted.
        memory: Trees drafted lately.
        copied: What is learnt of copies, and kept to copy from.
    """

    def __init__(self, recorded: RecordedDrafts | None = None) -> None:
        kind_or_none(recorded, "recorded", RecordedDrafts)
        self.acceptance, self.memory = AcceptanceModel(recorded), TreeMemory(recorded)
        self.copied = CopyMemory()

    def take_verified(self, steps: Iterable[StepRecord], *, trying: bool) -> None:
        """Learn from drafts that were verified, but for those that will be told of as a whole;
        ``trying`` is whether nothing is chosen.
        """
        for step in steps:
            if not step.watched:
                self.acceptance.observe(step.guessed, trying=trying)

    def take_watched(self, watched: WatchedDraft, *, trying: bool) -> None:
        """Learn from a draft that was compared with the text, and remember it."""
        self.acceptance.observe(watched.draft, trying=trying)
        self.memory.add(watched.draft.tree, watched.shape)
