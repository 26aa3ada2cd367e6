"""Text in, text out: chat templates, detokenising, stop strings, one response a token."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.generate import wired_limit
from mlx_lm.tokenizer_utils import TokenizerWrapper

from .beam import BeamShape
from .cache import PromptCache
from .decoding import DecodingConfig, decode
from .drafter import Drafter
from .errors import RedrafterError
from .model import SpeculativeModel
from .quantized_cache import CacheOptions
from .sampling import SamplingConfig
from .statistics import AcceptanceStats
from .steps import DecodedToken, ShapePlanner, StepRecord

Messages = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class GenerationResponse:
    """One token of an answer, in mlx-lm's terms.

    Attributes:
        text: What this token adds; "" while a character or a possible stop string is incomplete.
        token: Its id.
        from_draft: Whether the drafter had guessed it.
        finish_reason: "stop" or "length" on the last response, None before.
        prompt_tokens: Length of the prompt.
        prompt_tps: Prompt tokens per second, counting those already in the cache.
        generation_tokens: Tokens so far.
        generation_tps: Tokens per second since the first.
        peak_memory: In GB, since the program started.
        stats: The acceptance statistics so far; goes on counting, ``snapshot()`` keeps a copy.
        step: The step that produced the token; None for the first.
    """

    text: str
    token: int
    from_draft: bool
    finish_reason: str | None
    prompt_tokens: int
    prompt_tps: float
    generation_tokens: int
    generation_tps: float
    peak_memory: float
    stats: AcceptanceStats
    step: StepRecord | None


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
        planner=planner_of(model, planner, (beam_width, beam_length, node_budget)),
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


def encode_prompt(
    tokenizer: TokenizerWrapper, prompt: str | Sequence[int] | Messages | mx.array
) -> list[int]:
    """Token ids of a prompt: text, ids, or chat messages through the chat template.

    Raises:
        RedrafterError: If it is empty, or messages meet a tokenizer without a chat template.
    """
    if isinstance(prompt, str):
        bos = tokenizer.bos_token
        special = bos is None or not prompt.startswith(bos)
        ids = list(tokenizer.encode(prompt, add_special_tokens=special))
        return _not_empty(ids)
    listed: Any = prompt.tolist() if isinstance(prompt, mx.array) else prompt
    items: list[Any] = list(listed) if isinstance(listed, Sequence) else [None]
    if items and all(isinstance(item, dict) for item in items):
        return _not_empty(_encode_messages(tokenizer, items))
    if not all(isinstance(item, int) for item in items):
        raise RedrafterError(
            "The prompt has to be text, a list of token ids, or a list of chat messages "
            '({"role": ..., "content": ...}).'
        )
    return _not_empty(items)


def _not_empty(ids: list[int]) -> list[int]:
    if not ids:
        raise RedrafterError("The prompt is empty: give at least one token.")
    return ids


def _encode_messages(tokenizer: TokenizerWrapper, messages: Messages) -> list[int]:
    if not tokenizer.has_chat_template:
        raise RedrafterError(
            "This model's tokenizer has no chat template: pass the prompt as text instead."
        )
    try:
        ids = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True)
    except Exception as error:  # templates raise errors of their own kinds
        raise RedrafterError(f"The chat template refused these messages: {error}") from error
    return list(ids)


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
    model: SpeculativeModel, planner: ShapePlanner | None, shape: Iterable[int | None]
) -> ShapePlanner | None:
    """The planner that was given, or the model's own; None where part of a shape was given."""
    return None if any(part is not None for part in shape) else planner or model.planner


def stop_strings(stop: str | Sequence[str]) -> tuple[str, ...]:
    """One stop string or several, checked."""
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(string, str) and string for string in strings):
        raise RedrafterError("stop has to be a string or strings, none of them empty.")
    return strings


class StopScanner:
    """Finds the first stop string in text that comes in pieces.

    Text that may still turn out to be the beginning of a stop string is held back.

    Args:
        stops: The strings; none of them empty.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops = tuple(stops)
        self._held = ""

    def feed(self, piece: str) -> tuple[str, bool]:
        """Take a piece; return what can be shown, and whether a stop string was found."""
        text = self._held + piece
        found = [at for stop in self._stops if (at := text.find(stop)) != -1]
        if found:
            self._held = ""
            return text[: min(found)], True
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``, without being all of it."""
    return next(n for n in range(min(len(text), len(stop) - 1), -1, -1) if text.endswith(stop[:n]))


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


def respond(
    tokenizer: TokenizerWrapper,
    prompt: list[int],
    tokens: Iterator[DecodedToken],
    stats: AcceptanceStats,
    stops: tuple[str, ...],
    started: float | None = None,
) -> Iterator[GenerationResponse]:
    """Detokenise, watch for stop strings, measure; one response a token.

    Args:
        tokenizer: Of the tokens.
        prompt: What they follow.
        tokens: A text's; closed at its end.
        stats: Handed on.
        stops: Stop strings.
        started: When its prompt was begun, by ``time.perf_counter``; None for now.
    """
    detokenizer = tokenizer.detokenizer
    scanner = StopScanner(stops)
    started = time.perf_counter() if started is None else started
    prompt_tps = 0.0
    try:
        for count, decoded in enumerate(tokens, start=1):
            now = time.perf_counter()
            if count == 1:
                prompt_tps, started = len(prompt) / (now - started), now
            finish = decoded.finish_reason
            if finish != "stop":
                detokenizer.add_token(decoded.token)
            if finish is not None:
                detokenizer.finalize()
            text, stopped = scanner.feed(detokenizer.last_segment)
            finish = "stop" if stopped else finish
            if finish is not None and not stopped:
                text += scanner.flush()
            yield GenerationResponse(
                text=text,
                token=decoded.token,
                from_draft=decoded.from_draft,
                finish_reason=finish,
                prompt_tokens=len(prompt),
                prompt_tps=prompt_tps,
                generation_tokens=count,
                generation_tps=count / max(time.perf_counter() - started, 1e-9),
                peak_memory=mx.get_peak_memory() / 1e9,
                stats=stats,
                step=decoded.step,
            )
            if finish is not None:
                return
    finally:
        tokens.close()  # type: ignore[attr-defined]
