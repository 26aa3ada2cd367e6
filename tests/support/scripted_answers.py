"""An engine that answers by the last word of the question."""

from __future__ import annotations

from typing import Any

from live_server import ScriptedSequences
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_redrafter.server.work.sequences import Decoding

LONG = "the quick brown fox jumps over the lazy dog and the dog does not mind. " * 4
ANSWERS = {
    "say": "The dog does not mind.",
    "think": "<think>Is it lazy?</think>Yes, it is.",
    "call": 'Let me look.<tool_call>{"name": "look", "arguments": {"at": "dog"}}</tool_call>',
    "twice": '<tool_call>{"name": "look", "arguments": {"at": "a"}}</tool_call>'
    '<tool_call>{"name": "look", "arguments": {"at": "b"}}</tool_call>',
    "broken": "<tool_call>{not json</tool_call> sorry",
    "long": LONG,
    "markup": "<img src=x onerror=alert(1)> & <b>bold</b>",
    "smile": "naïve 😀 text",
}


def script(tokenizer: TokenizerWrapper, **options: Any) -> ScriptedSequences:
    """Answers by the last word of the question."""

    def answer(decoding: Decoding) -> list[int] | Exception:
        prompt = tokenizer.decode(decoding.prompt)
        if "<|assistant|>" not in prompt:
            return list(tokenizer.encode(" and on", add_special_tokens=False))
        said, _, begun = prompt.rpartition("<|assistant|>")
        question = said.rpartition("|>")[0].rpartition("<|")[0].rpartition("|>")[2]
        if "crash" in question:
            return ValueError("/secret/path")
        word = question.split()[-1] if question.split() else "say"
        text = ANSWERS.get(word, ANSWERS["say"])
        if begun.endswith("<tool_call>"):
            text = text[text.index("<tool_call>") + len("<tool_call>") :]
        return list(tokenizer.encode(text, add_special_tokens=False))

    return ScriptedSequences(answer, tokenizer.eos_token_id, **options)
