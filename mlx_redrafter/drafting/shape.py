"""How far and how wide a beam search drafts."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import RedrafterError

MAX_LENGTH = 64


@dataclass(frozen=True)
class BeamShape:
    """How far and how wide to draft.

    Attributes:
        width: Beams followed.
        length: Drafted tokens on a path. Apple's code counts the root too: its 5 is 4 here.
        node_budget: Candidates verified, the likeliest ones; None verifies all width x length.
    """

    width: int = 4
    length: int = 5
    node_budget: int | None = None

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            RedrafterError: If a value is out of its range.
        """
        for name in ("width", "length", "node_budget"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1024:
                raise RedrafterError(f"beam {name} is {value!r}, but has to be from 1 to 1024.")
        if self.length > MAX_LENGTH:
            raise RedrafterError(f"beam length is {self.length}, but may be {MAX_LENGTH} at most.")

    @property
    def nodes(self) -> int:
        """Candidates in the tree, the root not counted."""
        opened = self.width * self.length
        return min(opened, self.node_budget or opened)

    @property
    def leaves(self) -> int:
        """The most root-to-leaf paths that the tree can have.

        Each level but the deepest holds a node that another follows, and no level more than
        ``width`` nodes, so that many nodes reach at least a certain depth.
        """
        return self.nodes - -(-self.nodes // self.width) + 1
