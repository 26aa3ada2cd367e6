"""The options of a call, checked and sorted: what the loop needs, the prompt, and the text."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..cache.quantized import CacheOptions
from ..drafting.shape import BeamShape
from ..engine.checks import checked_planner
from ..engine.config import SAMPLER, DecodingConfig
from ..engine.model import SpeculativeModel, check_model
from ..engine.shape_planner import ShapePlanner
from ..errors import RedrafterError
from ..ranges import check_flags, function_of
from ..sampling import SamplingConfig
from .json_schemas import checked_schema
from .responses import stop_strings
from .structured import JsonAnswer
from .template_arguments import check_arguments

SAMPLING_OPTIONS = tuple(one.name for one in fields(SamplingConfig))
CACHE_OPTIONS = tuple(one.name for one in fields(CacheOptions))
# Those that a sampler of the caller's takes the place of; bias and penalties come before it.
CHOOSING_OPTIONS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "xtc_probability",
    "xtc_threshold",
    "xtc_special_tokens",
    "seed",
)
SHAPE_OPTIONS = ("beam_width", "beam_length", "node_budget")
TEXT_OPTIONS = (
    "sampling",
    "max_tokens",
    "stop",
    "draft",
    "copy",
    "remember",
    "planner",
    "prefill_step_size",
    "sampler",
    "logits_processors",
    "json_schema",
    "tools",
    "chat_template_args",
)
OPTIONS = frozenset((*SAMPLING_OPTIONS, *CACHE_OPTIONS, *SHAPE_OPTIONS, *TEXT_OPTIONS))

# What callers of mlx-lm and of other programs may write, and what takes its place here.
INSTEAD = {
    "temp": "use temperature",
    "draft_model": "give the drafter to load",
    "num_draft_tokens": "use beam_length",
    "num_beams": "use beam_width",
    "max_new_tokens": "use max_tokens",
    "stop_strings": "use stop",
    "stop_words": "use stop",
    "top_logprobs": "use logprobs with the number of likeliest tokens",
    "return_logprobs": "use logprobs=True",
    "verbose": "generate has it; the figures of a batch are in response.stats",
    "return_token_ids": "the response has token_ids always",
    "chat_template_config": "use chat_template_args",
    "prompt_caches": "texts of a batch keep no caches; use cache with stream_generate",
    "return_prompt_caches": "texts of a batch keep no caches; use cache with stream_generate",
    "prompt_cache": "texts of a batch keep no caches; use it with stream_generate",
    "cache": "texts of a batch keep no caches between turns; decode the prompts one by one",
    "samplers": "use sampler, or per_prompt with one for each prompt",
    "min_tokens_to_keep": "min_p keeps the likeliest token always",
    "completion_batch_size": "use batch_size",
    "prefill_batch_size": "use batch_size",
    "stream": "streams are mlx's own, one for each thread",
    "input_embeddings": "give tokens",
}


@dataclass(frozen=True)
class TextOptions:
    """The options of one text.

    Attributes:
        config: What the loop needs.
        stops: Strings that end the text.
        planner: Who chooses beam shapes; None where a shape is given, or there is none.
        tools: Descriptions of functions for the chat template.
        template_args: Further arguments of the chat template.
    """

    config: DecodingConfig
    stops: tuple[str, ...]
    planner: ShapePlanner | None
    tools: Sequence[dict[str, Any]] | None
    template_args: Mapping[str, Any] | None


def read_options(
    model: SpeculativeModel,
    tokenizer: TokenizerWrapper,
    given: Mapping[str, Any],
    *,
    max_tokens: int = 256,
) -> TextOptions:
    """Sort and check the options of a text; one that is None means its default.

    Args:
        model: Has a planner of its own, perhaps.
        tokenizer: Names the tokens that end a text.
        given: By name.
        max_tokens: Where none is given.

    Raises:
        RedrafterError: If one is unknown, naming what takes its place, or out of its range; or if
            the model is mlx-lm's own.
    """
    check_model(model)
    check_names(given)
    options = {name: value for name, value in given.items() if value is not None}
    check_flags(**{name: options.get(name, True) for name in ("draft", "copy", "remember")})
    shape = {name: options[name] for name in SHAPE_OPTIONS if name in options}
    sampling = _sampling(options)
    config = DecodingConfig(
        max_tokens=options.get("max_tokens", max_tokens),
        sampling=sampling,
        logits_processors=options.get("logits_processors", ()),
        constraint=_constraint(tokenizer, options),
        sampler=_sampler(model, options, sampling),
        draft=options.get("draft", True),
        copy=options.get("copy", True),
        remember=options.get("remember", True),
        beam=BeamShape(**{name.removeprefix("beam_"): value for name, value in shape.items()}),
        eos_token_ids=frozenset(tokenizer.eos_token_ids),
        prefill_step_size=options.get("prefill_step_size", DecodingConfig.prefill_step_size),
        cache_options=CacheOptions(**_chosen(options, CACHE_OPTIONS)),
    )
    # The model's own may have to measure the machine first: not where nothing is drafted.
    planned = config.draft and not shape
    named = checked_planner(options.get("planner"))
    planner = (named or model.planner) if planned else None
    return TextOptions(
        config,
        stop_strings(options.get("stop", ())),
        planner,
        options.get("tools"),
        check_arguments(options.get("chat_template_args")),
    )


def check_names(given: Mapping[str, Any], known: frozenset[str] = OPTIONS) -> None:
    """Refuse names that are no options, but for mlx-lm's where they ask for nothing.

    Raises:
        RedrafterError: Naming the first, and what takes its place.
    """
    for name, value in given.items():
        asks_for_nothing = name in INSTEAD and (value is None or value is False)
        if name not in known and not asks_for_nothing:
            said = INSTEAD.get(name, f"there are {', '.join(sorted(known))}")
            raise RedrafterError(f"There is no option {name}: {said}.")


def _sampling(options: Mapping[str, Any]) -> SamplingConfig:
    """The configuration that was given, or one of its fields that were."""
    fields_given = _chosen(options, SAMPLING_OPTIONS)
    whole = options.get("sampling")
    if whole is None:
        return SamplingConfig(**fields_given)
    if not isinstance(whole, SamplingConfig):
        raise RedrafterError("sampling has to be a SamplingConfig.")
    return replace(whole, **fields_given)


def _chosen(options: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: options[name] for name in names if name in options}


def _sampler(
    model: SpeculativeModel, options: Mapping[str, Any], sampling: SamplingConfig
) -> Callable[..., Any] | None:
    """The caller's sampler, which leaves nothing to do for options that choose tokens."""
    sampler: Callable[..., Any] | None = function_of(options.get("sampler"), "sampler", SAMPLER)
    if sampler is None:
        return None
    for one in fields(SamplingConfig):
        differs = getattr(sampling, one.name) != one.default
        if one.name in CHOOSING_OPTIONS and (one.name in options or differs):
            raise RedrafterError(f"sampler takes the place of {one.name}: give one of the two.")
    if model.drafts and options.get("draft", True):
        warnings.warn(
            "With a sampler of its own a text is decoded plainly, since what it draws depends on "
            "when it is asked; use temperature, top_p, top_k, min_p and seed to have drafts.",
            stacklevel=_callers_level(),
        )
    return sampler


def _constraint(tokenizer: TokenizerWrapper, options: Mapping[str, Any]) -> JsonAnswer | None:
    """What keeps an answer to a schema."""
    if "json_schema" not in options:
        return None
    schema = checked_schema(options["json_schema"])
    return JsonAnswer(tokenizer, schema, calls=bool(options.get("tools")))


def _callers_level() -> int:
    """The ``stacklevel`` by which a warning names the line that called this package."""
    package = __name__.partition(".")[0]
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame, level = frame.f_back, level + 1
    return level
