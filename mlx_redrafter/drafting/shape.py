"""How far and how wide a beam search drafts."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import RedrafterError
from ..ranges import is_count, shown

MAX_LENGTH = 64
# Nodes of a tree know their ancestors: what they take in memory grows with the square of this.
MAX_NODES = 8192


@dataclass(frozen=True)
class BeamShape:
    """How far and how wide to draft.

    Attributes:
        width: Beams followed.
        length: Drafted tokens on a path. Apple's code counts the root too: its 5 is 4 here.
        node_budget: Candidates verified, the likeliest ones; None verifies all width x length.
        max_leaves: Paths from the root to a leaf at most. The likeliest beam is kept whole then,
            and beside it so many further nodes that no more paths can come of them: what to draft
            where each path has a price of its own. None: no limit.
    """

    width: int = 4
    length: int = 5
    node_budget: int | None = None
    max_leaves: int | None = None

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            RedrafterError: If a value is out of its range.
        """
        for name in ("width", "length", "node_budget", "max_leaves"):
            value = getattr(self, name)
            if value is None:
                continue
            if not is_count(value) or not 1 <= value <= 1024:
                raise RedrafterError(
                    f"beam {name} is {shown(value)}, but has to be a whole number from 1 to 1024."
                )
            object.__setattr__(self, name, int(value))
        if self.length > MAX_LENGTH:
            raise RedrafterError(f"beam length is {self.length}, but may be {MAX_LENGTH} at most.")
        if self.width * self.length > MAX_NODES:
            raise RedrafterError(
                f"A beam of {self.width} x {self.length} drafts {self.width * self.length} tokens, "
                f"but may draft {MAX_NODES} at most: choose a smaller width or length."
            )

    @property
    def nodes(self) -> int:
        """Candidates in the tree, the root not counted."""
        opened = self.width * self.length
        narrow = opened if self.max_leaves is None else self.length + self.max_leaves - 1
        return min(opened, narrow, self.node_budget or opened)

    @property
    def leaves(self) -> int:
        """The most root-to-leaf paths that the tree can have.

        A node beside a whole beam adds a path at most. Without one, each level but the deepest
        holds a node that another follows, and no level more than ``width`` nodes, so that many
        nodes reach at least a certain depth.
        """
        if self.max_leaves is not None:
            return max(1, self.nodes - self.length + 1)
        return self.nodes - -(-self.nodes // self.width) + 1
