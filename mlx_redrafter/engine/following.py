"""What the other ranks of a shared target do: they decode what rank 0 decodes."""

from __future__ import annotations

from ..cache.prompt_cache import PromptCache
from .decode import steered
from .lockstep import Follower
from .model import SpeculativeModel
from .sequence import Sequence
from .shared_planner import shared


def follow(model: SpeculativeModel) -> None:
    """Decode what rank 0 decodes, until it leaves."""
    assert model.ranks is not None
    steering, caches = Follower(model.ranks), dict[int, PromptCache]()
    while (text := steering.hear()) is not None:
        for number in text["dropped"]:
            caches.pop(number, None)
        cache = caches.setdefault(text["cache"], model.make_cache())
        planner = shared(model.planner if text["plans"] else None, model.planner_lock)
        copied = planner.copied if planner else None
        sequence = Sequence(model, text["prompt"], text["config"], cache=cache, copied=copied)
        for _ in steered(model, sequence, lambda _done, _total: None, steering, planner):
            pass
