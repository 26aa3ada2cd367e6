"""Records how a head's drafts go, so that a planner knows it from the first text on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..drafting.drafter import Drafter
from ..drafting.recorded import RecordedDraft, RecordedDrafts
from ..drafting.shape import BeamShape
from ..engine.config import DecodingConfig
from ..engine.decode import decode
from ..engine.model import SpeculativeModel
from ..sampling import SamplingConfig
from ..target.target import Target

# What is drafted, so wide and long that most shapes are a part of it; and how much is kept.
WIDTH, LENGTH = 4, 15
KEPT = 64
# A planner is not told how a text is drawn: both ways of it, by turns.
TEMPERATURES = (0.0, 1.0)
# Each step verifies a large tree, so few prompts are answered, with few tokens.
PROMPTS, LONGEST = 8, 32


def record_drafts(
    target: Target,
    drafter: Drafter,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int = LONGEST,
    seed: int = 0,
    eos_token_ids: Sequence[int] = (),
    progress: Callable[[int, int], None] | None = None,
) -> RecordedDrafts | None:
    """Answer prompts greedily and at temperature 1, and keep some drafts of all of the way.

    Args:
        target: The target.
        drafter: The draft head; its weights are only read.
        prompts: Token ids, best ones that the head was not trained on; ``PROMPTS`` are enough.
        max_tokens: Longest answer; no more than ``LONGEST`` are decoded.
        seed: Of the sampling.
        eos_token_ids: Tokens that end an answer.
        progress: Called with (answers done, answers in all).

    Returns:
        They, None where nothing was drafted.
    """
    model = SpeculativeModel(target, drafter)
    width = 1 if target.verifies == "chain" else min(WIDTH, drafter.config.head_size)
    shape = BeamShape(width, LENGTH)
    drafts: list[list[RecordedDraft]] = [[] for _ in TEMPERATURES]
    for number, prompt in enumerate(prompts):
        for place, temperature in enumerate(TEMPERATURES):
            config = DecodingConfig(
                max_tokens=min(max_tokens, LONGEST),
                sampling=SamplingConfig(temperature=temperature, seed=seed),
                beam=shape,
                eos_token_ids=frozenset(eos_token_ids),
            )
            steps = {id(one.step): one.step for one in decode(model, prompt, config)}
            drafts[place] += [
                RecordedDraft.of(step.tree, step.path)
                for step in steps.values()
                if step is not None and step.drafted == shape.nodes
            ]
            if progress is not None:
                progress(len(TEMPERATURES) * number + place + 1, len(TEMPERATURES) * len(prompts))
    kept = [draft for pair in zip(*map(_spread, drafts), strict=False) for draft in pair]
    return RecordedDrafts(shape, tuple(kept)) if kept else None


def _spread(drafts: Sequence[RecordedDraft]) -> list[RecordedDraft]:
    """As many as are kept of one temperature, from all of the way."""
    count = min(len(drafts), KEPT // len(TEMPERATURES))
    return [drafts[place * len(drafts) // count] for place in range(count)]
