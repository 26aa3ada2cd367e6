"""The next step's draft as part of the graph that verifies the one before it.

A draft's own scores say how much of it is worth verifying. To read them before it is verified would
take a second evaluation a step; a draft made at the end of the step before is read together with
that step's choices. Which path the step accepts is then not known on the host yet, so the walk, and
what the draft hears of it, are computed on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx

from ..choices import Choices
from ..tree import DraftTree, accepted_leaf
from .memory_drafter import MemoryView
from .noise_scale import NoiseScale
from .shape import BeamShape
from .source import DraftInput, DraftSource, last_tokens

# (the accepted leaf, int32 (); the token chosen after it, int32 (1,)) -> what a draft sees there
Look = Callable[[mx.array, mx.array], MemoryView]


@dataclass(frozen=True)
class NextDraft:
    """What the next step is to draft, decided and drafted while the step before it is under way.

    Attributes:
        shape: The shape; None is a plain step.
        tree: The draft; None with a plain step.
        watched: Whether the draft is compared with the text that follows, as a whole, however much
            of it is verified.
        verified: Whether the next step may verify it; else that is plain all the same.
        probing: Whether it is to tell what other shapes would yield: no copies are set beside it.
        paused: Whether nothing is drafted since drafts of late failed.
    """

    shape: BeamShape | None
    tree: DraftTree | None
    watched: bool = False
    verified: bool = True
    probing: bool = False
    paused: bool = False

    @property
    def to_verify(self) -> BeamShape | None:
        """The shape of which the next step verifies a draft; None is a plain step."""
        return self.shape if self.verified else None


def next_draft_input(
    tree: DraftTree,
    choices: Choices,
    hidden: mx.array,
    noise: mx.array | None,
    text: Sequence[int],
    source: DraftSource,
    noise_scale: NoiseScale,
    look: Look | None = None,
) -> DraftInput:
    """What a draft is told that starts where the verified tree's accepted path ends.

    Args:
        tree: What is being verified.
        choices: The target's choices after the nodes.
        hidden: What a draft starts from at each node, see ``DraftInput``, (n, ...).
        noise: Row d for the token after depth d of the tree, and further rows for the draft;
            None when greedy.
        text: The tokens before the tree's root.
        source: What is to draft; it looks at no more than its ``lookback``.
        noise_scale: How far drafts follow the noise, before this step's choices.
        look: What a head with a memory sees of the text; None for others.
    """
    alone = len(tree) == 1  # its path is known: most small operations are not needed
    end = mx.array(0, dtype=mx.int32) if alone else accepted_leaf(tree, choices.tokens)
    depth = end if alone else mx.take(tree.depths, end)
    flipped = choices.flipped_by_noise
    if noise is not None and flipped is not None and alone:
        noise = noise[1 : 1 + source.max_depth] * noise_scale.scale_after_one(flipped)
    elif noise is not None and flipped is not None:
        age = mx.where(mx.take(tree.ancestors, end, axis=0), depth - tree.depths, -1)
        noise = mx.take(noise, depth + 1 + mx.arange(source.max_depth), axis=0)
        noise = noise * noise_scale.scale_after(flipped, age)
    before = None
    if lookback := source.lookback:
        line = tree.tokens if alone else mx.take(tree.path_tokens(), end, axis=0)
        line = mx.concatenate([mx.array(last_tokens(text, lookback), dtype=mx.int32), line])
        before = mx.take(line, depth + 1 + mx.arange(lookback))
    root = mx.take(choices.tokens, end[None])
    memory = None if look is None else look(end, root)
    return DraftInput(root, mx.take(hidden, end, axis=0), noise, before=before, memory=memory)
