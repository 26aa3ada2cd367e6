"""Drafts that the text which follows is compared with: it tells how far each would have gone.

What a text says is the same however it is decoded, so a draft of which nothing is verified, or a
part, shows as much of the drafter as one that is verified whole, for the draft's own time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..drafting.next_draft import NextDraft
from ..drafting.recorded import RecordedDraft
from ..drafting.shape import BeamShape
from ..tree import HostTree


@dataclass(frozen=True)
class WatchedDraft:
    """A draft, and how far the text went along with it.

    Attributes:
        shape: What was drafted.
        draft: Its tree, and the path that would have been accepted.
        verified: Whether the next step might verify it.
    """

    shape: BeamShape
    draft: RecordedDraft
    verified: bool = False

    @property
    def tokens(self) -> int:
        """What a step that verified it would have made."""
        return len(self.draft.path)


class Watch:
    """One sequence's watched draft, from its launch until it is known how it went.

    Attributes:
        idle: Whether there is none, so that another may be launched.
    """

    def __init__(self) -> None:
        self.idle = True
        self._draft: tuple[BeamShape, HostTree, bool] | None = None
        self._path = [0]
        self._over: list[WatchedDraft] = []

    def launch(self) -> None:
        """A draft is made with a step that is not read yet."""
        self.idle = False

    def cancel(self) -> None:
        """The step that it is made with is taken again, without it."""
        self.idle = True

    def begin(self, draft: NextDraft) -> None:
        """The step that it was made with was read; the text goes on after the draft's root."""
        assert draft.shape is not None
        assert draft.tree is not None
        self._draft, self._path = (draft.shape, draft.tree.read(), draft.verified), [0]

    def follow(self, tokens: Sequence[int]) -> None:
        """Hear the tokens that a step added to the text."""
        if self._draft is None:
            return
        shape, tree, verified = self._draft
        for token in tokens:
            child = tree.child(self._path[-1], token)
            if child is not None:
                self._path.append(child)
            if child is None or child not in tree.parents:
                record = RecordedDraft.of(tree, self._path)
                self._over = [WatchedDraft(shape, record, verified)]
                self._draft, self.idle = None, True
                return

    def take(self) -> list[WatchedDraft]:
        """How the draft went, once, as soon as that is known."""
        over, self._over = self._over, []
        return over
