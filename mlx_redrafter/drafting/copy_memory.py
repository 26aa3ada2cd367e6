"""What the texts of a planner share of copies."""

from __future__ import annotations

from dataclasses import dataclass, field

from .copy_acceptance import CopyAcceptance
from .earlier_answers import EarlierAnswers


@dataclass(frozen=True)
class CopyMemory:
    """What is learnt of copies, and kept to copy from, as texts come and go.

    Attributes:
        acceptance: How likely copied tokens are accepted.
        answers: Those that have ended, of texts that may be remembered.
    """

    acceptance: CopyAcceptance = field(default_factory=CopyAcceptance)
    answers: EarlierAnswers = field(default_factory=EarlierAnswers)
