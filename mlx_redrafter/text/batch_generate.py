"""Texts for several prompts at once, with mlx-lm's manners."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..engine.batch import DEFAULT_BATCH, check_batch_size
from ..engine.batch_decoder import BatchDecoder
from ..engine.model import SpeculativeModel
from ..engine.statistics import AcceptanceStats
from ..errors import RedrafterError
from ..ranges import of_kind, several
from ..sampling import SamplingConfig
from .generate import Prompt, wired
from .options import read_options
from .prompts import encode_prompt
from .responses import GenerationResponse, ResponseWriter
from .tokenizers import wrapped

DEFAULT_TOKENS = 128


@dataclass(frozen=True)
class BatchStats:
    """What a batch took, in the words of mlx-lm's.

    Attributes:
        prompt_tokens: Tokens of all prompts.
        prompt_time: Seconds spent on prompts.
        generation_tokens: Tokens of all texts, end-of-sequence tokens included.
        wall_time: Seconds from the first prompt to the last token; what a planner measures of the
            machine before is left out.
        peak_memory: In GB, since the program started.
        acceptance: Acceptance statistics of each text; their seconds are those of whole steps,
            which the texts share.
    """

    prompt_tokens: int
    prompt_time: float
    generation_tokens: int
    wall_time: float
    peak_memory: float
    acceptance: tuple[AcceptanceStats, ...]

    @property
    def prompt_tps(self) -> float:
        """Prompt tokens a second; 0 where no time was spent on them."""
        return _per_second(self.prompt_tokens, self.prompt_time)

    @property
    def generation_time(self) -> float:
        """Seconds spent on anything but prompts."""
        return max(0.0, self.wall_time - self.prompt_time)

    @property
    def generation_tps(self) -> float:
        """Tokens of all texts a second, the time of prompts left out."""
        return _per_second(self.generation_tokens, self.generation_time)


def _per_second(tokens: int, seconds: float) -> float:
    return tokens / seconds if seconds > 0 else 0.0


@dataclass(frozen=True)
class BatchResponse:
    """All texts of a batch.

    Attributes:
        texts: One a prompt, in their order.
        token_ids: Their tokens, without the end-of-sequence token.
        finish_reasons: "stop" or "length" for each.
        seeds: Names the noise that each is drawn with.
        logprobs: Their tokens' log-probabilities; None where no text asked for them, and for each
            token of a text that did not.
        stats: What it took.
    """

    texts: list[str]
    token_ids: list[list[int]]
    finish_reasons: list[str]
    seeds: list[int | None]
    logprobs: list[list[float | None]] | None
    stats: BatchStats


def stream_batch_generate(
    model: SpeculativeModel,
    tokenizer: TokenizerWrapper,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int | Sequence[int] | None = None,
    seed: int | Sequence[int] | None = None,
    batch_size: int = DEFAULT_BATCH,
    per_prompt: Sequence[Mapping[str, Any]] | None = None,
    **options: Any,
) -> Iterator[tuple[int, GenerationResponse]]:
    """Generate texts for several prompts together, yielding (place of the prompt, response).

    Each text is the one that :func:`stream_generate` gives for its prompt alone with the same seed:
    up to rounding, and in float32 equal. Responses of a text are in order; those of different texts
    come as they are made.

    Args:
        model: From :func:`mlx_redrafter.load`; its architecture has to verify trees.
        tokenizer: From the same.
        prompts: Each text, token ids, or a list of chat messages.
        max_tokens: Tokens at most, for all or one number a prompt; 128 by default.
        seed: One a prompt; or a number, to which each prompt's place is added. None: each text
            draws its own, which its responses name.
        batch_size: Texts under way at once; further prompts join as others leave.
        per_prompt: Options of single prompts, which go before those for all.
        **options: Those of :func:`stream_generate` for all prompts, caches apart. The planner plans
            with the costs of as many texts as are under way.

    Raises:
        RedrafterError: If an argument is out of its range, or the model's texts have to be decoded
            one by one; before anything is computed. And when all others have ended, if a text could
            not go on, as in :func:`stream_generate`.
    """
    tokenizer = wrapped(tokenizer)
    prompts = _listed(prompts)
    own = [{} for _ in prompts] if per_prompt is None else _options_each(per_prompt)
    if len(own) != len(prompts):
        raise RedrafterError(
            f"per_prompt has {len(own)} entries for {len(prompts)} prompts: give one for each."
        )
    for name, values in (("max_tokens", max_tokens), ("seed", seed)):
        for place, value in enumerate(_one_each(name, values, len(prompts))):
            own[place].setdefault(name, value)
    check_batch_size(batch_size)  # before a planner measures the machine
    read = [
        read_options(model, tokenizer, {**options, **one}, max_tokens=DEFAULT_TOKENS)
        for one in own or [{}]
    ]
    ids = [
        encode_prompt(
            tokenizer,
            prompt,
            tools=one.tools,
            template_args=one.template_args,
            name=f"prompts[{place}]",
        )
        for place, (prompt, one) in enumerate(zip(prompts, read, strict=False))
    ]
    # Where the texts could not share a shape, no planner can choose one for them.
    planners = {id(one.planner) for one in read}
    decoder = BatchDecoder(
        model,
        ids,
        [one.config for one in read[: len(ids)]],
        batch_size=batch_size,
        planner=read[0].planner if len(planners) == 1 else None,
    )
    return _stream(model, tokenizer, decoder, [one.stops for one in read])


def _listed(prompts: Any) -> list[Prompt]:
    """The prompts of whatever holds several; rows of an array are lists of token ids."""
    if isinstance(prompts, str | bytes):
        raise RedrafterError("prompts is one text: give a list of prompts, or use generate.")
    if hasattr(prompts, "tolist"):
        prompts = prompts.tolist()
    if isinstance(prompts, Mapping):
        raise RedrafterError("prompts is one mapping: give a list of prompts, or use generate.")
    return several(prompts, "prompts", "a list of prompts")


def _options_each(per_prompt: Any) -> list[dict[str, Any]]:
    """Options of single prompts, each a copy."""
    entries = several(per_prompt, "per_prompt", "a list of options, one for each prompt")
    return [
        dict(of_kind(one, f"per_prompt[{place}]", Mapping, "a mapping of options"))
        for place, one in enumerate(entries)
    ]


def _one_each(name: str, values: Any, count: int) -> list[Any]:
    """A value for each prompt: of a list or an array its own; seeds count up from a number."""
    values = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(values, Sequence) and not isinstance(values, str | bytes | bytearray):
        if len(values) != count:
            raise RedrafterError(
                f"{name} has {len(values)} entries for {count} prompts: "
                "give one for each, or one number for all."
            )
        return list(values)
    if name == "seed" and values is not None:
        first = SamplingConfig(seed=values)
        return [first.seeded(place).seed for place in range(count)]
    return [values] * count


def _stream(
    model: SpeculativeModel,
    tokenizer: TokenizerWrapper,
    decoder: BatchDecoder,
    stops: list[tuple[str, ...]],
) -> Iterator[tuple[int, GenerationResponse]]:
    writers: dict[int, ResponseWriter] = {}
    with wired(model), closing(iter(decoder)) as tokens:  # type: ignore[type-var]
        for index, token in tokens:
            if index not in writers:
                sequence = decoder.sequences[index]
                writers[index] = ResponseWriter(
                    tokenizer,
                    len(sequence.prompt),
                    stops[index],
                    stats=sequence.stats,
                    seed=sequence.config.sampling.seed,
                    prompt_seconds=decoder.prompt_seconds[index],
                )
            response = writers[index].add(token)
            if writers[index].finished:
                decoder.stop(index)
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
    prompts = _listed(prompts)
    if not prompts:
        raise RedrafterError("There are no prompts: give at least one.")
    texts = ["" for _ in prompts]
    tokens: list[list[int]] = [[] for _ in prompts]
    logprobs: list[list[float | None]] = [[] for _ in prompts]
    last: dict[int, GenerationResponse] = {}
    responses_of = stream_batch_generate(model, tokenizer, prompts, **options)
    started = time.perf_counter()  # the planner has measured the machine by now
    for index, response in responses_of:
        texts[index] += response.text
        tokens[index].append(response.token)
        logprobs[index].append(response.logprob)
        last[index] = response
    seconds = time.perf_counter() - started
    responses = [last[index] for index in range(len(prompts))]
    ends = set(wrapped(tokenizer).eos_token_ids)
    kept = [len(text) - (text[-1] in ends) for text in tokens]
    stats = BatchStats(
        prompt_tokens=sum(response.prompt_tokens for response in responses),
        prompt_time=sum(response.prompt_tokens / response.prompt_tps for response in responses),
        generation_tokens=sum(len(text) for text in tokens),
        wall_time=seconds,
        peak_memory=mx.get_peak_memory() / 1e9,
        acceptance=tuple(response.stats for response in responses),
    )
    return BatchResponse(
        texts=texts,
        token_ids=[text[:count] for text, count in zip(tokens, kept, strict=True)],
        finish_reasons=[response.finish_reason or "length" for response in responses],
        seeds=[response.seed for response in responses],
        logprobs=_kept_logprobs(logprobs, kept),
        stats=stats,
    )


def _kept_logprobs(
    logprobs: list[list[float | None]], kept: list[int]
) -> list[list[float | None]] | None:
    """So many of each text's; None where no text asked for any."""
    if all(one is None for text in logprobs for one in text):
        return None
    return [text[:count] for text, count in zip(logprobs, kept, strict=True)]
