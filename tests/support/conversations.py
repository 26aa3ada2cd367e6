"""Conversations in a language of ten words."""

from __future__ import annotations

import mlx_redrafter  # noqa: F401  (loads OpenBLAS before mlx)

import mlx.core as mx  # isort: skip


WORDS = ["<|end|>", "<|user|>", "<|assistant|>", "hi", "there", "how", "are", "you", "fine", "yes"]


TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|> ' + m['content'] + ' <|end|> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|> ' }}{% endif %}"
)


def chat(*contents: str) -> dict:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)]}


def marked(row) -> list[str]:
    return [WORDS[t] for t in row.tokens[row.answer]]


def greedy(model, tokenizer, messages, max_tokens: int) -> tuple[list[int], bool]:
    tokens = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    answer: list[int] = []
    while len(answer) < max_tokens:
        answer.append(mx.argmax(model(mx.array([tokens + answer]))[0, -1]).item())
        if answer[-1] in tokenizer.eos_token_ids:
            return answer[:-1], False
    return answer, True
