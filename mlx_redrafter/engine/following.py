"""What the other ranks of a shared target do: they decode what rank 0 decodes."""

from __future__ import annotations

from ..cache.prompt_cache import PromptCache
from .decode import steered
from .lockstep import Follower
from .loop import DecodingLoop
from .model import SpeculativeModel
from .sequence import Sequence


def follow(model: SpeculativeModel) -> None:
    """Decode what rank 0 decodes, until it leaves."""
    assert model.ranks is not None
    steering, caches = Follower(model.ranks), dict[int, PromptCache]()
    while (text := steering.hear()) is not None:
        for number in text["dropped"]:
            caches.pop(number, None)
        cache = caches.setdefault(text["cache"], model.make_cache())
        sequence = Sequence(model, text["prompt"], text["config"], cache=cache)
        loop = DecodingLoop(model, model.planner if text["plans"] else None)
        for _ in steered(loop, sequence, lambda _done, _total: None, steering):
            pass
