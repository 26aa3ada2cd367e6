"""Texts for several prompts at once, with mlx-lm's manners."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..cache.quantized import CacheOptions
from ..engine.batch import DEFAULT_BATCH, BatchDecoder, check_batch_size
from ..engine.model import SpeculativeModel
from ..engine.shape_planner import ShapePlanner
from ..engine.statistics import AcceptanceStats
from ..engine.step import DecodedToken
from ..errors import RedrafterError
from .generate import decoding_config, planner_of, wired
from .prompts import Messages, encode_prompt
from .responses import GenerationResponse, respond, stop_strings

Prompt = str | Sequence[int] | Messages | mx.array

_SHAPES = ("beam_width", "beam_length", "node_budget")
_CACHE_OPTIONS = ("max_kv_size", "kv_bits", "kv_group_size", "quantized_kv_start")


@dataclass(frozen=True)
class BatchStats:
    """What a batch took.

    Attributes:
        prompt_tokens: Tokens of all prompts.
        generation_tokens: Tokens of all texts, end-of-sequence tokens included.
        seconds: Wall-clock time, prefill included.
        generation_tps: Generated tokens per second of it.
        peak_memory: In GB, since the program started.
        acceptance: Acceptance statistics of each text; their seconds are those of whole steps,
            which the texts share.
    """

    prompt_tokens: int
    generation_tokens: int
    seconds: float
    generation_tps: float
    peak_memory: float
    acceptance: tuple[AcceptanceStats, ...]


@dataclass(frozen=True)
class BatchResponse:
    """All texts of a batch.

    Attributes:
        texts: One a prompt, in their order.
        token_ids: Their tokens, without the end-of-sequence token.
        finish_reasons: "stop" or "length" for each.
        stats: What it took.
    """

    texts: list[str]
    token_ids: list[list[int]]
    finish_reasons: list[str]
    stats: BatchStats


class _Feed:
    """The tokens of one text, each put in just before it is asked for."""

    def __init__(self) -> None:
        self.tokens: deque[DecodedToken] = deque()

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> DecodedToken:
        return self.tokens.popleft()

    def close(self) -> None:
        """Nothing is held that has to be given back."""


def stream_batch_generate(
    model: SpeculativeModel,
    tokenizer: TokenizerWrapper,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int | Sequence[int] = 128,
    batch_size: int = DEFAULT_BATCH,
    stop: str | Sequence[str] = (),
    planner: ShapePlanner | None = None,
    **options: Any,
) -> Iterator[tuple[int, GenerationResponse]]:
    """Generate texts for several prompts together, yielding (place of the prompt, response).

    Each text is the one that :func:`stream_generate` gives for its prompt alone, with the same
    seed: up to rounding, and in float32 equal. Responses of a text are in order; those of different
    texts come as they are made.

    Args:
        model: From :func:`mlx_redrafter.load`; its architecture has to verify trees.
        tokenizer: From the same.
        prompts: Each text, token ids, or a list of chat messages.
        max_tokens: Tokens at most, for all or one number a prompt.
        batch_size: Texts under way at once; further prompts join as others leave.
        stop: Strings that end a text; they are not part of it.
        planner: Chooses each step's beam shape for all texts; by default the model's own. It plans
            with the costs of as many texts as are under way. Not used where a beam argument is
            given.
        **options: ``draft``, ``beam_width``, ``beam_length``, ``node_budget``,
            ``prefill_step_size``, and the fields of :class:`SamplingConfig`.

    Raises:
        RedrafterError: If an argument is out of its range, or the model's texts have to be decoded
            one by one; before anything is computed.
    """
    if isinstance(prompts, str):
        raise RedrafterError("prompts is one text: give a list of prompts, or use generate.")
    limits = None if isinstance(max_tokens, int) else list(max_tokens)
    common = max_tokens if isinstance(max_tokens, int) else 128
    if options.pop("cache", None) is not None:
        raise RedrafterError(
            "Prompts that are decoded together keep no cache between turns: leave cache out, or "
            "decode them one by one."
        )
    kept = {name: options.pop(name) for name in _CACHE_OPTIONS if name in options}
    config = decoding_config(
        tokenizer, max_tokens=common, cache_options=CacheOptions(**kept), **options
    )
    stops = stop_strings(stop)
    ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    check_batch_size(batch_size)  # before a planner measures the machine
    decoder = BatchDecoder(
        model,
        ids,
        config,
        max_tokens=limits,
        batch_size=batch_size,
        planner=planner_of(
            model, planner, map(options.get, _SHAPES), draft=options.get("draft", True)
        ),
    )
    return _stream(model, tokenizer, ids, decoder, stops)


def _stream(
    model: SpeculativeModel,
    tokenizer: TokenizerWrapper,
    prompts: list[list[int]],
    decoder: BatchDecoder,
    stops: tuple[str, ...],
) -> Iterator[tuple[int, GenerationResponse]]:
    writers: dict[int, tuple[_Feed, Iterator[GenerationResponse]]] = {}
    with wired(model), closing(iter(decoder)) as tokens:  # type: ignore[type-var]
        for index, token in tokens:
            if index not in writers:
                feed, begun = _Feed(), time.perf_counter() - decoder.prompt_seconds[index]
                stats = decoder.stats[index]
                writer = respond(tokenizer, prompts[index], feed, stats, stops, begun)
                writers[index] = feed, writer
            feed, writer = writers[index]
            feed.tokens.append(token)
            response = next(writer)
            if response.finish_reason is not None:
                decoder.stop(index)
                del writers[index]
            yield index, response


def batch_generate(
    model: SpeculativeModel,
    tokenizer: TokenizerWrapper,
    prompts: Sequence[Prompt],
    **options: Any,
) -> BatchResponse:
    """All texts of :func:`stream_batch_generate`, which takes the same options.

    Raises:
        RedrafterError: As there; and if there are no prompts.
    """
    if not prompts:
        raise RedrafterError("There are no prompts: give at least one.")
    started = time.perf_counter()
    texts = ["" for _ in prompts]
    tokens: list[list[int]] = [[] for _ in prompts]
    last: dict[int, GenerationResponse] = {}
    for index, response in stream_batch_generate(model, tokenizer, prompts, **options):
        texts[index] += response.text
        tokens[index].append(response.token)
        last[index] = response
    seconds = time.perf_counter() - started
    responses = [last[index] for index in range(len(prompts))]
    made = sum(len(text) for text in tokens)
    ends = set(tokenizer.eos_token_ids)
    stats = BatchStats(
        prompt_tokens=sum(response.prompt_tokens for response in responses),
        generation_tokens=made,
        seconds=seconds,
        generation_tps=made / seconds,
        peak_memory=mx.get_peak_memory() / 1e9,
        acceptance=tuple(response.stats for response in responses),
    )
    return BatchResponse(
        texts=texts,
        token_ids=[text[:-1] if text[-1] in ends else text for text in tokens],
        finish_reasons=[response.finish_reason or "length" for response in responses],
        stats=stats,
    )
