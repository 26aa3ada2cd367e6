"""The target's own answers as training data (ReDrafter, section 3.3: knowledge distillation)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.models.cache import CacheList, make_prompt_cache

from .data import Record, conversation, is_text

Tick = Callable[[], object]


def _sampler(temperature: float, seed: int) -> Callable[[mx.array], mx.array]:
    """Draw from log-probabilities (rows, vocabulary) with keys of its own."""
    if temperature == 0:
        return lambda log_probs: mx.argmax(log_probs, axis=-1)
    key = mx.random.key(seed)

    def sample(log_probs: mx.array) -> mx.array:
        nonlocal key
        key, draw = mx.random.split(key)
        return mx.random.categorical(log_probs / temperature, key=draw)

    return sample


def _nothing() -> None:
    pass


def _batches_well(model: Any) -> bool:
    """Whether mlx-lm can decode several texts of this model side by side."""
    layers = make_prompt_cache(model)
    parts = [part for c in layers for part in (c.caches if isinstance(c, CacheList) else (c,))]
    return all(hasattr(part, "merge") for part in parts)


def _answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    max_tokens: int,
    sampler: Callable[[mx.array], mx.array],
    tick: Tick,
) -> list[tuple[list[int], bool]]:
    """(token ids without the end, whether it was cut off) for each prompt of token ids."""
    if not _batches_well(model):
        return [_answer(model, tokenizer, p, max_tokens, sampler, tick) for p in prompts]
    generator = BatchGenerator(
        model,
        stop_tokens=[[t] for t in sorted(tokenizer.eos_token_ids)],
        sampler=sampler,
        completion_batch_size=len(prompts),
    )
    ids = generator.insert([list(p) for p in prompts], [max_tokens] * len(prompts))
    tokens: dict[Any, list[int]] = {i: [] for i in ids}
    cut: dict[Any, bool] = dict.fromkeys(ids, False)
    try:
        while responses := generator.next_generated():
            for response in responses:
                if response.finish_reason != "stop":
                    tokens[response.uid].append(response.token)
                cut[response.uid] = response.finish_reason == "length"
            tick()
    finally:
        generator.close()
    return [(tokens[i], cut[i]) for i in ids]


def _answer(
    model: Any,
    tokenizer: Any,
    prompt: list[int],
    max_tokens: int,
    sampler: Callable[[mx.array], mx.array],
    tick: Tick,
) -> tuple[list[int], bool]:
    """One answer, for models whose caches cannot be put side by side."""
    tokens: list[int] = []
    for token, _ in generate_step(mx.array(prompt), model, max_tokens=max_tokens, sampler=sampler):
        tick()
        if token in tokenizer.eos_token_ids:
            return tokens, False
        tokens.append(token)
    return tokens, True


def _answer_chats(
    model: Any,
    tokenizer: Any,
    records: Sequence[Record],
    max_tokens: int,
    sampler: Callable[[mx.array], mx.array],
    tick: Tick,
) -> list[Record]:
    """Answer each user turn of the records in order, each after the target's earlier answers."""
    sources = [[m for m in conversation(r) if m["role"] != "assistant"] for r in records]
    chats: list[list[dict[str, str]]] = [[] for _ in records]
    cut = [False] * len(records)
    while any(sources):
        asked = []
        for i, source in enumerate(sources):
            while source and not cut[i]:
                chats[i].append(source.pop(0))
                if chats[i][-1]["role"] == "user":
                    asked.append(i)
                    break
            if cut[i]:
                source.clear()
        prompts = [
            tokenizer.apply_chat_template(chats[i], add_generation_prompt=True, return_dict=False)
            for i in asked
        ]
        answers = []
        if prompts:
            answers = _answers(model, tokenizer, prompts, max_tokens, sampler, tick)
        for i, (tokens, was_cut) in zip(asked, answers, strict=True):
            chats[i].append({"role": "assistant", "content": tokenizer.decode(tokens)})
            cut[i] = was_cut
    return [
        {"messages": chat, **({"truncated": True} if was_cut else {})}
        for chat, was_cut in zip(chats, cut, strict=True)
    ]


def _continue_texts(
    model: Any,
    tokenizer: Any,
    records: Sequence[Record],
    max_tokens: int,
    sampler: Callable[[mx.array], mx.array],
    tick: Tick,
    prompt_tokens: int,
) -> list[Record]:
    """Continue the beginning of each text."""
    prompts = [tokenizer.encode(r["text"])[:prompt_tokens] for r in records]
    answers = _answers(model, tokenizer, prompts, max_tokens, sampler, tick) if prompts else []
    return [
        {
            "text": tokenizer.decode([*prompt, *tokens]),
            "prompt_tokens": len(prompt),
            **({"truncated": True} if was_cut else {}),
        }
        for prompt, (tokens, was_cut) in zip(prompts, answers, strict=True)
    ]


def regenerate(
    model: Any,
    tokenizer: Any,
    records: Sequence[Record],
    *,
    max_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
    chunk_size: int = 64,
    start: int = 0,
    prompt_tokens: int = 16,
    tick: Tick = _nothing,
) -> Iterator[Record]:
    """Replace the assistant's turns by what the target itself answers, one record at a time.

    Of a text the beginning is kept and the target goes on from there.

    Args:
        model: mlx-lm model.
        tokenizer: mlx-lm's TokenizerWrapper.
        records: Conversations or prompts, see ``data.conversation``, or texts.
        max_tokens: Longest answer; a conversation that reaches it ends there and is marked
            ``"truncated": true``.
        temperature: 0 takes the likeliest token each time.
        seed: With the chunk's number it gives the draws, so a run continued at ``start`` draws the
            same answers.
        chunk_size: Conversations answered side by side.
        start: Records already answered; a multiple of ``chunk_size``.
        prompt_tokens: Of a text, how many tokens begin it.
        tick: Called after every token; an exception that it raises ends the work.

    Yields:
        {"messages": [...]}, or {"text", "prompt_tokens"} for a text, for ``records[start:]``, in
        their order.
    """
    for first in range(start, len(records), chunk_size):
        sampler = _sampler(temperature, seed * 1_000_003 + first // chunk_size)
        chunk = records[first : first + chunk_size]
        texts = [r for r in chunk if is_text(r)]
        chats = [r for r in chunk if not is_text(r)]
        rest = model, tokenizer
        continued = iter(_continue_texts(*rest, texts, max_tokens, sampler, tick, prompt_tokens))
        answered = iter(_answer_chats(*rest, chats, max_tokens, sampler, tick))
        for record in chunk:
            yield next(continued if is_text(record) else answered)
        mx.clear_cache()
