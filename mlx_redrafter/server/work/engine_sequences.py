"""The engine as the server sees it: prompts resume from kept prefixes, tokens tell their source."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper

from ...cache.prompt_cache import PromptCache
from ...engine import events
from ...engine.batch import Engine
from ...engine.config import DecodingConfig
from ...engine.lockstep import same_beginning
from ...engine.model import SpeculativeModel
from ...engine.statistics import AcceptanceStats
from ...engine.step import DecodedToken, StepRecord
from ...sampling import SamplingConfig
from ...text.structured import JsonAnswer
from .prefix_cache import PrefixCache
from .sequences import (
    Decoding,
    NewToken,
    PromptRead,
    SequenceEvent,
    SequenceFailed,
    StepShape,
)


class EngineSequences:
    """Sequences of one model; see :class:`Sequences`.

    Args:
        model: Target and drafter.
        tokenizer: Names the tokens that end a text.
        prefixes: Kept from request to request.
        max_concurrent: Sequences under way at most.
        prefill_step_size: Prompt tokens read between two steps.
    """

    def __init__(
        self,
        model: SpeculativeModel,
        tokenizer: TokenizerWrapper,
        prefixes: PrefixCache,
        *,
        max_concurrent: int,
        prefill_step_size: int,
    ):
        self._model, self._tokenizer = model, tokenizer
        self._ends = frozenset(tokenizer.eos_token_ids)
        self._prefixes = prefixes
        self._prefill_step_size = prefill_step_size
        self._remembers = False  # whether the draft head keeps something of a text
        keep = self._keep if prefixes.keeps else None
        self._engine = Engine(model, batch_size=max_concurrent, planner=model.planner, keep=keep)
        self._stats: dict[int, AcceptanceStats] = {}
        self._prompts: dict[int, PromptCache] = {}
        self._steps: dict[int, StepRecord] = {}

    def add(self, decoding: Decoding) -> int:
        schema, calls = decoding.schema, decoding.calls
        answer = None if schema is None else JsonAnswer(self._tokenizer, schema, calls=calls)
        config = DecodingConfig(
            max_tokens=decoding.max_tokens,
            sampling=SamplingConfig(**decoding.sampling, logprobs=decoding.logprobs),
            draft=decoding.draft,
            copy=decoding.copies,
            remember=True,
            eos_token_ids=self._ends,
            prefill_step_size=self._prefill_step_size,
            constraint=answer,
        )
        cache = self._prefixes.take(decoding.prompt) or self._model.make_cache()
        if self._model.ranks is not None:
            same_beginning(self._model.ranks, cache)  # sizes, and so what was dropped, may differ
        stats = AcceptanceStats()
        number = self._engine.add(decoding.prompt, config, cache=cache, stats=stats)
        self._stats[number] = stats
        if self._prefixes.keeps:
            self._prompts[number] = cache
        return number

    def known(self, prompt: list[int]) -> int:
        return self._prefixes.known(prompt)

    def step(self) -> Iterator[SequenceEvent]:
        for event in self._engine.step():
            if event.sequence not in self._stats:
                continue  # it was stopped at an earlier token of this step
            if isinstance(event, events.PromptRead):
                yield self._read(event)
            elif isinstance(event, events.NewToken):
                yield self._token(event.sequence, event.decoded)
            else:
                yield SequenceFailed(event.sequence, event.error)

    def stop(self, sequence: int) -> None:
        self._engine.stop(sequence)
        self._stats.pop(sequence, None)
        self._prompts.pop(sequence, None)
        self._steps.pop(sequence, None)

    def statistics(self, sequence: int) -> dict[str, Any]:
        return self._stats[sequence].to_dict()

    def plain_tokens_per_second(self, context: int) -> float | None:
        """See :class:`Sequences`; by the plain steps that the planner has heard of."""
        planner = self._model.planner
        return None if planner is None else planner.plain_speed(context)

    @property
    def cache_bytes(self) -> int:
        return self._prefixes.nbytes

    def _read(self, event: events.PromptRead) -> PromptRead:
        if event.done >= event.total and event.sequence in self._prompts:
            # Others may begin with the same prompt while this one is answered.
            prompt = self._prompts.pop(event.sequence).copy()
            self._remembers = prompt.memory is not None
            self._prefixes.put(prompt)
        return PromptRead(event.sequence, event.done, event.total, event.cached)

    def _keep(self, left: PromptCache) -> None:
        """Keep what a text has left, unless a draft head would have to read it all again."""
        if left.memory is not None or not self._remembers:
            self._prefixes.put(left)

    def _token(self, number: int, decoded: DecodedToken) -> NewToken:
        step = decoded.step
        new = step is not None and self._steps.get(number) is not step
        if step is not None:
            self._steps[number] = step
        return NewToken(
            number,
            decoded.token,
            decoded.source,
            decoded.finish_reason,
            logprob=decoded.logprob,
            top=decoded.top_logprobs,
            step=_shape(step) if step is not None and new else None,
        )


def _shape(step: StepRecord) -> StepShape:
    return StepShape(step.tree.tokens, step.tree.parents, step.path)
