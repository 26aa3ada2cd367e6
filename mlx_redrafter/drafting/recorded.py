"""Drafts of a head as they went on held-out prompts, by which a planner knows it from the start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import RedrafterError
from ..tree import HostTree
from .shape import BeamShape

MOST_DRAFTS = 1024
MOST_NODES = 1024
LEAST_SCORE = -1e6


@dataclass(frozen=True)
class RecordedDraft:
    """One draft, verified whole.

    Attributes:
        tree: Its nodes; the tokens are not recorded, so all are 0.
        path: The nodes that the target accepted, the root (0) first.
    """

    tree: HostTree
    path: tuple[int, ...]

    @classmethod
    def of(cls, tree: HostTree, path: Sequence[int]) -> RecordedDraft:
        """What is kept of a step."""
        scores = tuple(round(score, 2) for score in tree.log_probs)
        return cls(HostTree((0,) * len(tree.parents), tree.parents, scores), tuple(path))


@dataclass(frozen=True)
class RecordedDrafts:
    """Some of a head's drafts.

    Attributes:
        shape: What all of them were drafted with.
        drafts: They, from several prompts and temperatures, mixed.
    """

    shape: BeamShape
    drafts: tuple[RecordedDraft, ...]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: three lists a draft, the root left out of the first two."""
        return {
            "width": self.shape.width,
            "length": self.shape.length,
            "drafts": [
                {
                    "parents": list(draft.tree.parents[1:]),
                    "scores": list(draft.tree.log_probs[1:]),
                    "accepted": list(draft.path[1:]),
                }
                for draft in self.drafts
            ],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RecordedDrafts:
        """What ``to_dict`` made.

        Raises:
            RedrafterError: If it is anything else.
        """
        shape = BeamShape(values.get("width", 0), values.get("length", 0))
        drafts = values.get("drafts")
        if not isinstance(drafts, list) or len(drafts) > MOST_DRAFTS:
            raise RedrafterError("'drafts' has to be a list of recorded drafts.")
        return cls(shape, tuple(_draft(draft, shape) for draft in drafts))


def _draft(values: Any, shape: BeamShape) -> RecordedDraft:
    values = values if isinstance(values, dict) else {}
    parents, scores = _numbers(values, "parents"), _numbers(values, "scores", float)
    accepted = _numbers(values, "accepted")
    nodes = range(1, 1 + len(parents))
    whole = 0 < len(parents) == len(scores) <= min(MOST_NODES, shape.nodes)
    ordered = all(0 <= parent < node for node, parent in zip(nodes, parents, strict=True))
    if not (whole and ordered and all(LEAST_SCORE <= score <= 0 for score in scores)):
        raise RedrafterError("A recorded draft is no tree with a score for each node.")
    tree = HostTree((0,) * (1 + len(parents)), (-1, *parents), (0.0, *map(float, scores)))
    if max(tree.depths) > shape.length:
        raise RedrafterError("A recorded draft is longer than its beam.")
    if accepted and (accepted[-1] not in nodes or tree.path(accepted[-1])[1:] != accepted):
        raise RedrafterError("What was accepted of a recorded draft is no path of it.")
    return RecordedDraft(tree, (0, *accepted))


def _numbers(values: dict[str, Any], name: str, kind: type = int) -> list[Any]:
    found = values.get(name)
    kinds = (int, float) if kind is float else (int,)
    right = isinstance(found, list) and all(
        isinstance(one, kinds) and not isinstance(one, bool) for one in found
    )
    if not isinstance(found, list) or not right:
        raise RedrafterError(f"'{name}' of a recorded draft has to be a list of numbers.")
    return found
