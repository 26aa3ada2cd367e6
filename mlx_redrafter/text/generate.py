"""Text in, text out: chat templates, detokenising, stop strings, one response a token."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import mlx.core as mx
from mlx_lm.generate import wired_limit
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..cache.prompt_cache import PromptCache
from ..cache.quantized import CacheOptions
from ..drafting.drafter import Drafter
from ..drafting.shape import BeamShape
from ..engine.config import DecodingConfig
from ..engine.decode import decode
from ..engine.model import SpeculativeModel
from ..engine.shape_planner import ShapePlanner
from ..engine.statistics import AcceptanceStats
from ..sampling import SamplingConfig
from .prompts import Messages, encode_prompt
from .responses import GenerationResponse, respond, stop_strings


def stream_generate(
    model: SpeculativeModel,
    tokenizer: TokenizerWrapper,
    prompt: str | Sequence[int] | Messages | mx.array,
    *,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float | None = None,
    repetition_context_size: int = 20,
    presence_penalty: float | None = None,
    presence_context_size: int = 20,
    frequency_penalty: float | None = None,
    frequency_context_size: int = 20,
    seed: int = 0,
    stop: str | Sequence[str] = (),
    draft: bool = True,
    beam_width: int | None = None,
    beam_length: int | None = None,
    node_budget: int | None = None,
    planner: ShapePlanner | None = None,
    cache: PromptCache | None = None,
    max_kv_size: int | None = None,
    kv_bits: int | None = None,
    kv_group_size: int = 64,
    quantized_kv_start: int = 5000,
    prefill_step_size: int = 2048,
    prompt_progress_callback: Callable[[int, int], None] | None = None,
) -> Iterator[GenerationResponse]:
    """Generate text, yielding one response a token.

    The text is the target's own, drafted or not: in float32 it is the same for ``draft=False`` and
    for every beam shape.

    Args:
        model: From :func:`mlx_redrafter.load`.
        tokenizer: From the same.
        prompt: Text, token ids, or a list of chat messages ({"role", "content"}).
        max_tokens: Tokens at most; -1 for no limit.
        temperature: 0 takes the likeliest token; above, ``seed`` names the text that is drawn.
        top_p: See :class:`SamplingConfig`, as for the other filters and penalties.
        top_k: Likewise.
        min_p: Likewise.
        repetition_penalty: Likewise.
        repetition_context_size: Likewise.
        presence_penalty: Likewise.
        presence_context_size: Likewise.
        frequency_penalty: Likewise.
        frequency_context_size: Likewise.
        seed: Names the noise that sampling uses.
        stop: Strings that end the answer; they are not part of it.
        draft: False decodes plainly.
        beam_width: Beams that the drafter follows.
        beam_length: Tokens it drafts on a path.
        node_budget: Candidates verified in a step, at most.
        planner: Chooses each step's beam shape, or plain decoding, by what it measured on this
            machine; the model's own by default. Not used where a beam argument is given.
        cache: Caches kept between turns (``model.make_cache()``); only what differs from the tokens
            they hold is prefilled.
        max_kv_size: See :class:`CacheOptions`, as for the next three; not with drafting.
        kv_bits: Likewise.
        kv_group_size: Likewise.
        quantized_kv_start: Likewise.
        prefill_step_size: Prompt tokens run through the target at once.
        prompt_progress_callback: Told (tokens done, tokens to do) during prefill.

    Yields:
        Responses; the last one has a finish reason.

    Raises:
        RedrafterError: If an argument is out of its range, before anything is computed.
    """
    config = decoding_config(
        tokenizer,
        max_tokens=max_tokens,
        draft=draft,
        beam_width=beam_width,
        beam_length=beam_length,
        node_budget=node_budget,
        prefill_step_size=prefill_step_size,
        cache_options=CacheOptions(max_kv_size, kv_bits, kv_group_size, quantized_kv_start),
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        repetition_context_size=repetition_context_size,
        presence_penalty=presence_penalty,
        presence_context_size=presence_context_size,
        frequency_penalty=frequency_penalty,
        frequency_context_size=frequency_context_size,
        seed=seed,
    )
    ids = encode_prompt(tokenizer, prompt)
    stats = AcceptanceStats()
    tokens = decode(
        model,
        ids,
        config,
        cache=cache,
        stats=stats,
        planner=planner_of(model, planner, (beam_width, beam_length, node_budget), draft=draft),
        progress=prompt_progress_callback,
    )
    return _respond(model, respond(tokenizer, ids, tokens, stats, stop_strings(stop)))


def generate(
    model: SpeculativeModel,
    tokenizer: TokenizerWrapper,
    prompt: str | Sequence[int] | Messages | mx.array,
    **options: Any,
) -> str:
    """The whole text of :func:`stream_generate`, which takes the same options."""
    return "".join(
        response.text for response in stream_generate(model, tokenizer, prompt, **options)
    )


def decoding_config(
    tokenizer: TokenizerWrapper,
    *,
    max_tokens: int = 256,
    draft: bool = True,
    beam_width: int | None = None,
    beam_length: int | None = None,
    node_budget: int | None = None,
    prefill_step_size: int = 2048,
    cache_options: CacheOptions | None = None,
    **sampling: Any,
) -> DecodingConfig:
    """The options of :func:`stream_generate` that the loop needs, checked.

    Args:
        tokenizer: Names the tokens that end a text.
        max_tokens: As there, like those that follow.
        draft: Likewise.
        beam_width: Likewise.
        beam_length: Likewise.
        node_budget: Likewise.
        prefill_step_size: Likewise.
        cache_options: How keys and values are kept.
        **sampling: The fields of :class:`SamplingConfig`.

    Raises:
        RedrafterError: If one is out of its range.
    """
    return DecodingConfig(
        max_tokens=max_tokens,
        sampling=SamplingConfig(**sampling),
        draft=draft,
        beam=_beam_shape(beam_width, beam_length, node_budget),
        eos_token_ids=frozenset(tokenizer.eos_token_ids),
        prefill_step_size=prefill_step_size,
        cache_options=cache_options or CacheOptions(),
    )


def _beam_shape(width: int | None, length: int | None, budget: int | None) -> BeamShape:
    default = BeamShape()
    return BeamShape(
        width=default.width if width is None else width,
        length=default.length if length is None else length,
        node_budget=default.node_budget if budget is None else budget,
    )


def planner_of(
    model: SpeculativeModel,
    planner: ShapePlanner | None,
    shape: Iterable[int | None],
    *,
    draft: bool,
) -> ShapePlanner | None:
    """The planner that was given, or the model's own.

    None where part of a shape was given, or nothing is drafted: the model's own may have to measure
    the machine first.
    """
    if not draft:
        return None
    return None if any(part is not None for part in shape) else planner or model.planner


def _respond(
    model: SpeculativeModel, responses: Iterator[GenerationResponse]
) -> Iterator[GenerationResponse]:
    with wired(model):
        yield from responses


def wired(model: SpeculativeModel) -> AbstractContextManager[None]:
    """Keeps a model's weights in the GPU's memory inside the block, as mlx-lm does."""
    modules = [model.target.model]
    if isinstance(model.drafter, Drafter):
        modules.append(model.drafter)
    limit: AbstractContextManager[None] = wired_limit(modules)
    return limit
