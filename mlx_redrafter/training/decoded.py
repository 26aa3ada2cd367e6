"""What a drafter is worth in real decoding: tokens per step and acceptance by depth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..drafting.drafter import Drafter
from ..drafting.shape import BeamShape
from ..engine.config import DecodingConfig
from ..engine.decode import decode
from ..engine.model import SpeculativeModel
from ..engine.statistics import AcceptanceStats
from ..sampling import SamplingConfig
from ..target.target import Target
from .data import TokenRow

TEXT_PROMPT = 16  # tokens of a text that begin an answer


@dataclass(frozen=True)
class DecodedFigures:
    """Counts of real decoding.

    Attributes:
        tokens_per_step: Mean tokens of text per target forward.
        acceptance_by_depth: Share of the trials at depth 1, 2, ... that were accepted.
        tokens: Tokens decoded.
        steps: Target forwards.
        prompts: Prompts answered.
    """

    tokens_per_step: float
    acceptance_by_depth: tuple[float, ...]
    tokens: int
    steps: int
    prompts: int

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**asdict(self), "acceptance_by_depth": list(self.acceptance_by_depth)}


def prompts_of(
    rows: Sequence[TokenRow], count: int | None = None, text_prompt: int = TEXT_PROMPT
) -> list[list[int]]:
    """Prompts of rows: what stands before the first answer.

    Args:
        rows: Held-out rows; of a row that is all answer, the beginning is the prompt.
        count: Most prompts; rows are taken evenly from all of them.
        text_prompt: Tokens of such a beginning.
    """
    count = len(rows) if count is None else min(count, len(rows))
    prompts = []
    for i in range(count):
        row = rows[i * len(rows) // count]
        first = int(row.answer.argmax())
        if first <= 1:  # a text: at most half of it is given away
            first = max(1, min(text_prompt, len(row.tokens) // 2))
        prompts.append([int(token) for token in row.tokens[:first]])
    return prompts


def measure_decoding(
    target: Target,
    drafter: Drafter,
    prompts: Sequence[Sequence[int]],
    *,
    beam: BeamShape,
    max_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    eos_token_ids: Sequence[int] = (),
    progress: Callable[[int, int], None] | None = None,
) -> DecodedFigures:
    """Answer prompts with the drafter as it stands and count.

    Args:
        target: The target.
        drafter: The draft head; its weights are only read.
        prompts: Token ids.
        beam: Shape of the drafts.
        max_tokens: Longest answer.
        temperature: Of the sampling; 0 is greedy.
        seed: Of the sampling.
        eos_token_ids: Tokens that end an answer.
        progress: Called with (prompts done, prompts in all).
    """
    # A model of its own each time: what it prepares for a drafter may keep weights of the moment.
    model = SpeculativeModel(target, drafter)
    stats = AcceptanceStats()
    config = DecodingConfig(
        max_tokens=max_tokens,
        sampling=SamplingConfig(temperature=temperature, seed=seed),
        beam=beam,
        eos_token_ids=frozenset(eos_token_ids),
    )
    for number, prompt in enumerate(prompts, 1):
        for _ in decode(model, prompt, config, stats=stats):
            pass
        if progress is not None:
            progress(number, len(prompts))
    return DecodedFigures(
        tokens_per_step=stats.tokens_per_step,
        acceptance_by_depth=tuple(stats.acceptance_by_depth),
        tokens=stats.tokens,
        steps=stats.steps,
        prompts=len(prompts),
    )
