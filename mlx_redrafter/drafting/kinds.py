"""Which classes a drafter's configuration asks for."""

from __future__ import annotations

from .config import DrafterConfig
from .drafter import Drafter
from .memory_drafter import MemoryDrafter
from .prepared_anchored import PreparedAnchoredDrafter, PreparedRecurrentDrafter
from .prepared_drafter import PreparedDrafter
from .prepared_memory import PreparedMemoryDrafter
from .recurrent_drafter import AnchoredDrafter, IndependentHeads, RecurrentDrafter


def drafter_of(config: DrafterConfig) -> Drafter:
    """A drafter of the kind that a configuration asks for, its weights arbitrary."""
    if config.memory_heads is not None:
        return MemoryDrafter(config)
    kind = RecurrentDrafter if config.independent_heads is None else IndependentHeads
    return kind(config)


def prepare(drafter: Drafter) -> PreparedDrafter:
    """A drafter whose weights are final, laid out for drafts."""
    if isinstance(drafter, MemoryDrafter):
        return PreparedMemoryDrafter(drafter)
    if isinstance(drafter, RecurrentDrafter):
        return PreparedRecurrentDrafter(drafter)
    assert isinstance(drafter, AnchoredDrafter)
    return PreparedAnchoredDrafter(drafter)
