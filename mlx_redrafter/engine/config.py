"""How a text is to be decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import mlx.core as mx

from ..cache.quantized import CacheOptions
from ..drafting.shape import BeamShape
from ..errors import RedrafterError
from ..logits import Constraint, LogitsProcessor
from ..ranges import (
    check_flags,
    function_of,
    functions_of,
    is_count,
    of_kind,
    shown,
    token_ids,
)
from ..sampling import SamplingConfig
from ..target.target import PREFILL_STEP

SAMPLER = "a function from log-probabilities to token ids"
PROCESSORS = "a list of functions of (tokens, logits)"


@dataclass(frozen=True)
class DecodingConfig:
    """How a text is to be decoded.

    Attributes:
        max_tokens: Tokens to decode at most; -1 for no limit.
        sampling: How tokens are chosen.
        logits_processors: Change the logits after each token before one is chosen, as mlx-lm's do:
            (tokens (k,), logits (1, vocab_size)) to logits. They are called once for every token,
            in order, drafted or not, so they may keep a state of their own; which takes a further
            evaluation for each token of a drafted step.
        constraint: Says, after the processors, which tokens may come next; one for each text.
        sampler: Chooses tokens instead, as mlx-lm's do: log-probabilities (1, vocab_size) to ids
            (1,). What it draws depends on when it is asked, so nothing is drafted.
        draft: Whether to draft, where the model can.
        copy: Whether to draft copies of the text too, for which no draft head is needed.
        remember: Whether copies may come from earlier answers too, and this one is kept for later
            texts; of those that share a planner.
        beam: Shape of the drafts.
        eos_token_ids: Tokens that end the text.
        prefill_step_size: Prompt tokens run through the target at once.
        cache_options: How keys and values are kept.
    """

    max_tokens: int = 256
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    logits_processors: tuple[LogitsProcessor, ...] = ()
    constraint: Constraint | None = None
    sampler: Callable[[mx.array], mx.array] | None = None
    draft: bool = True
    copy: bool = False
    remember: bool = False
    beam: BeamShape = field(default_factory=BeamShape)
    eos_token_ids: frozenset[int] = frozenset()
    prefill_step_size: int = PREFILL_STEP
    cache_options: CacheOptions = field(default_factory=CacheOptions)

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            RedrafterError: If a value is out of its range, or of another kind.
        """
        for name, kind in (
            ("sampling", SamplingConfig),
            ("beam", BeamShape),
            ("cache_options", CacheOptions),
        ):
            of_kind(getattr(self, name), name, kind, f"a {kind.__name__}")
        check_flags(draft=self.draft, copy=self.copy, remember=self.remember)
        processors = functions_of(self.logits_processors, "logits_processors", PROCESSORS)
        object.__setattr__(self, "logits_processors", processors)
        if self.constraint is not None and not callable(getattr(self.constraint, "allowed", None)):
            raise RedrafterError(
                f"constraint is {shown(self.constraint)}, but has to say which tokens are allowed."
            )
        function_of(self.sampler, "sampler", SAMPLER)
        ends = token_ids(self.eos_token_ids, "eos_token_ids")
        object.__setattr__(self, "eos_token_ids", frozenset(ends))
        limit = self.max_tokens
        if not is_count(limit) or (limit != -1 and limit < 1):
            raise RedrafterError(
                f"max_tokens is {shown(limit)}, but has to be 1 or more, or -1 for no limit."
            )
        object.__setattr__(self, "max_tokens", int(limit))
        size = self.prefill_step_size
        if not is_count(size) or size < 1:
            raise RedrafterError(f"prefill_step_size is {shown(size)}, but has to be 1 or more.")
        object.__setattr__(self, "prefill_step_size", int(size))
