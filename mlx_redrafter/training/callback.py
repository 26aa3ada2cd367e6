"""Who hears how a run goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .loop import Progress


class TrainingCallback:
    """Hears how a run goes; these methods do nothing.

    Each is called where everything is in order: what it raises ends the run, and after the
    checkpoint is written ``resume`` can go on.
    """

    def note(self, text: str) -> None:
        """A sentence worth knowing."""

    def stage(self, name: str, done: int, total: int) -> None:
        """A part of the work got on; the steps of the training are one of them."""

    def report(self, progress: Progress) -> None:
        """Loss and figures, every so many steps and at evaluations."""
