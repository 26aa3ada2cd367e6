"""The target's own answers as training data (ReDrafter, section 3.3: knowledge distillation)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.models.cache import CacheList, make_prompt_cache

from ..errors import RedrafterError
from ..text.drafter_files import tokenizer_hash
from .data import Record, Turn, chat_prompt, conversation, is_text, templating, with_turns
from .held_out import asked

Tick = Callable[[], object]


@dataclass(frozen=True)
class Answer:
    """What the target wrote.

    Attributes:
        tokens: Token ids without the end.
        end: The token that ended it; None where it was cut off.
    """

    tokens: list[int]
    end: int | None

    def after(self, prompt: Sequence[int]) -> Turn:
        """It and its prompt."""
        end = [] if self.end is None else [self.end]
        return Turn([*prompt, *self.tokens, *end], len(prompt))


def sampler_for(temperature: float, seed: int) -> Callable[[mx.array], mx.array]:
    """Draw from log-probabilities (rows, vocabulary) with keys of its own."""
    if temperature == 0:
        return lambda log_probs: mx.argmax(log_probs, axis=-1)
    key = mx.random.key(seed)

    def sample(log_probs: mx.array) -> mx.array:
        nonlocal key
        key, draw = mx.random.split(key)
        return mx.random.categorical(log_probs / temperature, key=draw)

    return sample


def seed_of_draws(seed: int, number: int) -> int:
    """A seed for each of a run's parts, below 2**64, which is as far as mlx's go.

    Args:
        seed: Of the run.
        number: Of the part, such as a chunk of prompts.
    """
    product = seed * 1_000_003 + number
    if product < 2**64:
        return product
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:8], "big")


def _nothing() -> None:
    pass


def _batches_well(model: Any) -> bool:
    """Whether mlx-lm can decode several texts of this model side by side."""
    layers = make_prompt_cache(model)
    parts = [part for c in layers for part in (c.caches if isinstance(c, CacheList) else (c,))]
    return all(hasattr(part, "merge") for part in parts)


def decode_batch(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    max_tokens: int,
    sampler: Callable[[mx.array], mx.array],
    tick: Tick,
    ends: Collection[int] | None = None,
    *,
    longest: int | None = None,
) -> list[Answer]:
    """Decode prompts side by side, with mlx-lm's batches where the model allows them.

    Args:
        model: mlx-lm model.
        tokenizer: mlx-lm's TokenizerWrapper.
        prompts: Token ids, at least one each.
        max_tokens: Longest answer.
        sampler: Draws from log-probabilities (rows, vocabulary).
        tick: Called after every token.
        ends: Tokens that end an answer; by default the tokenizer's.
        longest: Tokens of a prompt and its answer at most; None for no limit. Prompts are shorter.

    Returns:
        One answer for each prompt.
    """
    ends = set(tokenizer.eos_token_ids) if ends is None else set(ends)
    most = [max_tokens if longest is None else min(max_tokens, longest - len(p)) for p in prompts]
    if not _batches_well(model):
        pairs = zip(prompts, most, strict=True)
        return [_answer(model, p, tokens, sampler, tick, ends) for p, tokens in pairs]
    generator = BatchGenerator(
        model,
        stop_tokens=[[t] for t in sorted(ends)],
        sampler=sampler,
        completion_batch_size=len(prompts),
    )
    ids = generator.insert([list(p) for p in prompts], most)
    tokens: dict[Any, list[int]] = {i: [] for i in ids}
    ended: dict[Any, int | None] = dict.fromkeys(ids)
    try:
        while responses := generator.next_generated():
            for response in responses:
                if response.finish_reason == "stop":
                    ended[response.uid] = int(response.token)
                else:
                    tokens[response.uid].append(int(response.token))
            tick()
    finally:
        generator.close()
    return [Answer(tokens[i], ended[i]) for i in ids]


def _answer(
    model: Any,
    prompt: list[int],
    max_tokens: int,
    sampler: Callable[[mx.array], mx.array],
    tick: Tick,
    ends: set[int],
) -> Answer:
    """One answer, for models whose caches cannot be put side by side."""
    tokens: list[int] = []
    for token, _ in generate_step(mx.array(prompt), model, max_tokens=max_tokens, sampler=sampler):
        tick()
        if token in ends:
            return Answer(tokens, int(token))
        tokens.append(int(token))
    return Answer(tokens, None)


class _Chat:
    """A conversation that is being answered again.

    Args:
        record: Gives all but the assistant's turns.
        tokenizer: mlx-lm's TokenizerWrapper.
        longest: Tokens that it may have; a question that leaves no room for an answer ends it.
    """

    def __init__(self, record: Record, tokenizer: Any, longest: int | None = None):
        self.messages: list[dict[str, Any]] = []
        self.turns: list[Turn] = []
        self._tokenizer, self._tools = tokenizer, record.get("tools")
        self._source = [m for m in conversation(record) if m["role"] != "assistant"]
        self._cut = False
        self._longest = longest

    def ask(self) -> list[int] | None:
        """The prompt up to the next question; None where there is no more."""
        while self._source and not self._cut:
            self.messages.append(self._source.pop(0))
            if self.messages[-1]["role"] == "user":
                with templating(self._tokenizer, self.messages):
                    prompt = chat_prompt(self._tokenizer, self.messages, self._tools)
                if self._longest is None or len(prompt) < self._longest:
                    return prompt
                self._cut = True
        return None

    def hear(self, prompt: list[int], answer: Answer) -> None:
        """Take the answer to a prompt; one that was cut off ends the conversation."""
        text = self._tokenizer.decode(answer.tokens)
        self.messages.append({"role": "assistant", "content": text})
        self.turns.append(answer.after(prompt))
        self._cut = answer.end is None

    def record(self) -> tuple[Record, list[Turn]]:
        """What was said, and the answers in it."""
        tools = {} if self._tools is None else {"tools": self._tools}
        cut = {"truncated": True} if self._cut else {}
        return {"messages": self.messages, **tools, **cut}, self.turns


def _answer_chats(
    model: Any,
    tokenizer: Any,
    records: Sequence[Record],
    max_tokens: int,
    sampler: Callable[[mx.array], mx.array],
    tick: Tick,
    longest: int | None,
) -> list[tuple[Record, list[Turn]]]:
    """Answer each user turn of the records in order, each after the target's earlier answers."""
    chats = [_Chat(record, tokenizer, longest) for record in records]
    while asked := [(chat, prompt) for chat in chats if (prompt := chat.ask()) is not None]:
        prompts = [prompt for _, prompt in asked]
        answers = decode_batch(
            model, tokenizer, prompts, max_tokens, sampler, tick, longest=longest
        )
        for (chat, prompt), answer in zip(asked, answers, strict=True):
            chat.hear(prompt, answer)
    return [chat.record() for chat in chats]


def check_prompts(records: Sequence[Record], tokenizer: Any) -> None:
    """See that the chat template takes all conversations, before hours are spent on answers.

    Raises:
        RedrafterError: If there is no template, or it refuses one.
    """
    placeholder = Answer([], 0)
    for record in records:
        if not is_text(record):
            chat = _Chat(record, tokenizer)
            while (prompt := chat.ask()) is not None:
                chat.hear(prompt, placeholder)


def unlike(
    records: Sequence[Record],
    held: Sequence[Record],
    tokenizer: Any,
    *,
    prompt_tokens: int = 16,
    longest: int | None = None,
) -> list[Record]:
    """Records that ask something else than any of ``held``, whose answers theirs would be.

    Args:
        records: To be answered and learned from.
        held: To be answered and evaluated on.
        tokenizer: mlx-lm's TokenizerWrapper.
        prompt_tokens: See :func:`regenerate`, as is ``longest``.
        longest: Tokens of a text at most; None for no limit.

    Raises:
        RedrafterError: If there is none.
    """

    def answered(record: Record) -> str | tuple[int, ...]:
        if is_text(record):
            return tuple(_beginning(record, tokenizer, prompt_tokens, longest))
        return asked(record)

    known = {answered(record) for record in held}
    found = [record for record in records if answered(record) not in known]
    if not found:
        raise RedrafterError(
            "All of the data ask the same as what is held out to evaluate on, so that nothing is "
            f"left to learn from (texts that begin with the same {prompt_tokens} tokens are "
            "continued alike): add other data."
        )
    return found


def _beginning(
    record: Record, tokenizer: Any, prompt_tokens: int, longest: int | None
) -> list[int]:
    """Tokens of a text that the target continues; none of an empty one."""
    if not record["text"]:
        return []
    most = prompt_tokens if longest is None else min(prompt_tokens, longest - 1)
    return list(tokenizer.encode(record["text"])[:most])


def _continue_texts(
    model: Any,
    tokenizer: Any,
    records: Sequence[Record],
    max_tokens: int,
    sampler: Callable[[mx.array], mx.array],
    tick: Tick,
    prompt_tokens: int,
    longest: int | None,
) -> list[tuple[Record, list[Turn]]]:
    """Continue the beginning of each text; an empty one has none and stays."""
    prompts = [_beginning(record, tokenizer, prompt_tokens, longest) for record in records]
    given = [prompt for prompt in prompts if prompt]
    answers = iter(
        decode_batch(model, tokenizer, given, max_tokens, sampler, tick, longest=longest)
        if given
        else []
    )
    return [
        _continued(prompt, next(answers), tokenizer) if prompt else (record, [])
        for record, prompt in zip(records, prompts, strict=True)
    ]


def _continued(prompt: list[int], answer: Answer, tokenizer: Any) -> tuple[Record, list[Turn]]:
    # Encoding the text puts the mark of its beginning there again.
    shown = prompt[1:] if prompt[0] == tokenizer.bos_token_id else prompt
    record: Record = {
        "text": tokenizer.decode([*shown, *answer.tokens]),
        "prompt_tokens": len(prompt),
        **({"truncated": True} if answer.end is None else {}),
    }
    return record, [answer.after(prompt)]


def regenerate(
    model: Any,
    tokenizer: Any,
    records: Sequence[Record],
    *,
    max_tokens: int = 256,
    temperature: float | Sequence[float] = 0.0,
    seed: int = 0,
    chunk_size: int = 64,
    start: int = 0,
    prompt_tokens: int = 16,
    longest: int | None = None,
    tick: Tick = _nothing,
) -> Iterator[Record]:
    """Replace the assistant's turns by what the target itself answers, one record at a time.

    Of a text the beginning is kept and the target continues from there.

    Args:
        model: mlx-lm model.
        tokenizer: mlx-lm's TokenizerWrapper.
        records: Conversations or prompts, see ``data.conversation``, or texts.
        max_tokens: Longest answer; a conversation that reaches it ends there and is marked
            ``"truncated": true``.
        temperature: 0 takes the likeliest token each time; several go to the chunks in turn.
        seed: With the chunk's number it gives the draws, so a run continued at ``start`` draws the
            same answers.
        chunk_size: Conversations answered side by side.
        start: Records already answered; a multiple of ``chunk_size``.
        prompt_tokens: Of a text, how many tokens begin it.
        longest: Tokens of a conversation at most, since no more are learned from; it ends where the
            next answer would begin beyond them, and is marked as above. None for no limit.
        tick: Called after every token; an exception that it raises ends the work.

    Yields:
        {"messages": [...]}, or {"text", "prompt_tokens"} for a text, for ``records[start:]``, in
        their order; with the tokens where the text alone would not give them, see
        ``data.with_turns``.

    Raises:
        RedrafterError: If the chat template refuses a conversation.
    """
    sha256 = tokenizer_hash(tokenizer)
    temperatures = [temperature] if isinstance(temperature, float | int) else list(temperature)
    for first in range(start, len(records), chunk_size):
        number = first // chunk_size
        sampler = sampler_for(temperatures[number % len(temperatures)], seed_of_draws(seed, number))
        chunk = records[first : first + chunk_size]
        texts = [r for r in chunk if is_text(r)]
        chats = [r for r in chunk if not is_text(r)]
        rest = model, tokenizer
        continued = iter(
            _continue_texts(*rest, texts, max_tokens, sampler, tick, prompt_tokens, longest)
        )
        answered = iter(_answer_chats(*rest, chats, max_tokens, sampler, tick, longest))
        for record in chunk:
            new, turns = next(continued if is_text(record) else answered)
            yield with_turns(new, turns, tokenizer, sha256)
        mx.clear_cache()
