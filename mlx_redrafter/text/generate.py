"""Text in, text out: one response a token."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import mlx.core as mx
from mlx_lm.generate import wired_limit
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..cache.prompt_cache import PromptCache
from ..engine.decode import begin
from ..engine.model import SpeculativeModel
from ..errors import RedrafterError
from ..ranges import check_flags, function_of
from .options import read_options
from .prompts import Messages, encode_prompt
from .responses import GenerationResponse, ResponseWriter
from .tokenizers import wrapped

Prompt = str | Sequence[int] | Messages | mx.array


def stream_generate(
    model: SpeculativeModel,
    tokenizer: TokenizerWrapper,
    prompt: Prompt,
    *,
    cache: PromptCache | None = None,
    prompt_cache: PromptCache | None = None,
    prompt_progress_callback: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Iterator[GenerationResponse]:
    """Generate text, yielding one response a token.

    The text is the target's own, drafted or not: in float32 it is the same for ``draft=False`` and
    for every beam shape. An option that is None means its default.

    Args:
        model: From :func:`mlx_redrafter.load`.
        tokenizer: From the same, or one of transformers'.
        prompt: Text, token ids, or a list of chat messages ({"role", "content"}): with a
            cache, too, the whole conversation, where mlx-lm takes only what is new.
        cache: Caches kept between turns (``model.make_cache()``), or in a file (``cache.save``,
            ``model.load_cache``); only what differs from the tokens they hold is prefilled, and
            everything where the model's weights were replaced since.
        prompt_cache: mlx-lm's name of ``cache``.
        prompt_progress_callback: Called with (tokens done, tokens in all) while the prompt
            is read, and when the first token after it is there.
        **options: Any of these, by name:

            - ``max_tokens`` (256): tokens at most; -1 for no limit.
            - ``sampling``: a :class:`SamplingConfig`; or its fields by name: ``temperature``,
              ``seed``, filters, penalties, ``logit_bias``, ``logprobs``. Without a seed the text
              draws its own, which each response names.
            - ``sampler``, ``logits_processors``: as mlx-lm's. A sampler decodes plainly, and takes
              the place of temperature, seed and filters.
            - ``json_schema``: the answer is JSON of this schema, a mapping; what the prompt has it
              think before is free, and with ``tools`` it may be a call instead. Needs llguidance.
              Few schemas lead nowhere, which shows in the middle of an answer: an error then.
            - ``stop``: a string or strings that end the answer; they are not part of its text, but
              the tokens that spell them are responses too, log-probabilities included.
            - ``draft`` (True): False decodes plainly.
            - ``copy`` (True): drafts copies too: what followed earlier places of the text, prompt
              included, at which its end stood. They need no draft head, and a planner verifies
              them as far as that pays; beside a shape of one's own they share its nodes.
            - ``remember`` (True): copies may come from the answers before, too, as many as the
              planner has kept in this process, and this answer is kept when it has ended.
            - ``beam_width``, ``beam_length``, ``node_budget``: one shape for all drafts, see
              :class:`BeamShape`.
            - ``planner``: chooses each step's beam shape, or plain decoding, by what it measured on
              this machine; the model's own by default. Not used where a shape is given.
            - the fields of :class:`CacheOptions`: ``max_kv_size`` (not with drafting), ``kv_bits``,
              ``kv_group_size``, ``quantized_kv_start``.
            - ``prefill_step_size`` (2048): prompt tokens run through the target at once.
            - ``tools``, ``chat_template_args``: for the chat template, where messages are given.

    Yields:
        Responses; the last one has a finish reason.

    Raises:
        RedrafterError: If an argument is unknown or out of its range, before anything is computed;
            and behind a token after which a schema or ``logits_processors`` leave no other.
    """
    tokenizer = wrapped(tokenizer)
    if cache is not None and prompt_cache is not None:
        raise RedrafterError("cache and prompt_cache are two names of one argument: give one.")
    wanted = "a function of (tokens done, tokens to do)"
    function_of(prompt_progress_callback, "prompt_progress_callback", wanted)
    told = _no_progress if prompt_progress_callback is None else prompt_progress_callback
    read = read_options(model, tokenizer, options)
    ids = encode_prompt(tokenizer, prompt, tools=read.tools, template_args=read.template_args)
    sequence, tokens = begin(
        model,
        ids,
        read.config,
        cache=cache if cache is not None else prompt_cache,
        planner=read.planner,
        # The prompt's last token is read with the step after it.
        progress=lambda done, total: told(done, total + 1),
    )
    writer = ResponseWriter(
        tokenizer, len(ids), read.stops, stats=sequence.stats, seed=sequence.config.sampling.seed
    )
    return _respond(model, tokens, writer, lambda: told(len(ids), len(ids)))


def generate(
    model: SpeculativeModel,
    tokenizer: TokenizerWrapper,
    prompt: Prompt,
    verbose: bool = False,
    **options: Any,
) -> str:
    """The whole text of :func:`stream_generate`, which takes the same options.

    Args:
        model: As there, as for the next two.
        tokenizer: As there.
        prompt: As there.
        verbose: Whether to write the text to stdout as it comes, and then speeds, as mlx-lm does.
        **options: As there.
    """
    check_flags(verbose=verbose)
    write = sys.stdout.write if verbose else _silence
    rule, text, last = "=" * 10 + "\n", "", None
    write(rule)
    for last in stream_generate(model, tokenizer, prompt, **options):
        write(last.text)
        if verbose:
            sys.stdout.flush()
        text += last.text
    write("\n" + rule)
    if last is not None:
        write(_summary(last))
    return text


def _silence(_text: str) -> int:
    return 0


def _no_progress(_done: int, _total: int) -> None:
    pass


def _summary(last: GenerationResponse) -> str:
    lines = [
        f"Prompt: {last.prompt_tokens} tokens, {last.prompt_tps:.3f} tokens-per-sec",
        f"Generation: {last.generation_tokens} tokens, {last.generation_tps:.3f} tokens-per-sec",
        f"Peak memory: {last.peak_memory:.3f} GB",
        f"Tokens per step: {last.stats.tokens_per_step:.2f}",
    ]
    return "\n".join(lines) + "\n"


def _respond(
    model: SpeculativeModel,
    tokens: Iterator[Any],
    writer: ResponseWriter,
    prompt_read: Callable[[], None],
) -> Iterator[GenerationResponse]:
    writer.start()
    try:
        with wired(model):
            for number, token in enumerate(tokens):
                if not number:
                    prompt_read()
                yield writer.add(token)
                if writer.finished:
                    return
    finally:
        tokens.close()  # type: ignore[attr-defined]


def wired(model: SpeculativeModel) -> AbstractContextManager[None]:
    """Keeps a model's weights in the GPU's memory inside the block, as mlx-lm does."""
    modules = [model.target.model, *([model.head] if model.head is not None else [])]
    limit: AbstractContextManager[None] = wired_limit(modules)
    return limit
