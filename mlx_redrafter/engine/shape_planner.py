"""Who chooses the shape of each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..drafting.shape import BeamShape
from ..tree import HostTree
from .step import StepRecord


class ShapePlanner(Protocol):
    """Chooses what to draft, step by step, and learns from how it went."""

    @property
    def costs(self) -> DraftCosts:
        """What drafts cost."""

    @property
    def drafting_disabled(self) -> bool:
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

    def num_nodes_to_verify(self, shape: BeamShape, tree: HostTree, context: int) -> int:
        """How many of a draft's nodes to verify, from the first on; asked where it drafts ahead."""

    def observe(
        self, shape: BeamShape | None, records: Sequence[StepRecord], seconds: float, context: int
    ) -> None:
        """Take note of a step: its shape, how it went for each text, its time and context."""


class DraftCosts(Protocol):
    """What drafts cost."""

    def draft_seconds(self, shape: BeamShape) -> float:
        """Seconds of a draft of that shape."""
