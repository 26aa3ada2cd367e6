"""What planners learn of how drafts are accepted, whatever steps cost."""

from __future__ import annotations

from ..drafting.copy_acceptance import CopyAcceptance
from ..drafting.recorded import RecordedDrafts
from .acceptance import AcceptanceModel
from .forecast import TreeMemory


class Learnt:
    """Shared by the planners of all batch sizes.

    Args:
        recorded: How drafts went when the head was trained, to begin with.

    Attributes:
        acceptance: How likely nodes of each kind are accepted.
        memory: Trees drafted lately.
        copied: How likely copies are accepted.
    """

    def __init__(self, recorded: RecordedDrafts | None = None) -> None:
        self.acceptance, self.memory = AcceptanceModel(recorded), TreeMemory(recorded)
        self.copied = CopyAcceptance()
