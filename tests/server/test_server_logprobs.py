"""Log-probabilities of tokens that are a part of a character."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from live_server import Live, ScriptedSequences
from mlx_lm.tokenizer_utils import TokenizerWrapper
from scripted_answers import script
from sentencepieces import sentencepiece_tokenizer

from mlx_redrafter.server.protocol.answer import Answer, Finished, Text, TokenLogprob, Usage
from mlx_redrafter.server.protocol.completions import CompletionWriter
from mlx_redrafter.server.protocol.responses_request import parse_responses
from mlx_redrafter.server.protocol.task import Parsed
from mlx_redrafter.server.protocol.writing import Envelope
from mlx_redrafter.server.work.answering import Answering, Job
from mlx_redrafter.server.work.prompts import Encoded
from mlx_redrafter.server.work.sequences import Decoding, NewToken, SequenceEvent
from mlx_redrafter.server.work.token_bytes import bytes_of

TEXT = " na\N{LATIN SMALL LETTER I WITH DIAERESIS}ve \N{GRINNING FACE} so"


class Tops(ScriptedSequences):
    """Finds the bytes of one character as likely as each other, everywhere."""

    likeliest: tuple[tuple[int, float], ...] = ()

    def step(self) -> Iterator[SequenceEvent]:
        for event in super().step():
            yield replace(event, top=self.likeliest) if isinstance(event, NewToken) else event


@pytest.fixture(scope="module")
def engine(tokenizer: TokenizerWrapper) -> ScriptedSequences:
    def encoded(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    engine = Tops(lambda _: encoded(TEXT), script(tokenizer).eos)
    parts = encoded("\N{GRINNING FACE}")
    assert len(parts) == 4
    engine.likeliest = tuple((token, -float(place)) for place, token in enumerate(parts))
    return engine


def asked(live: Live, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = httpx.post(live.url + path, json=body)
    assert response.status_code == 200, response.text
    logprobs: dict[str, Any] = response.json()["choices"][0]["logprobs"]
    return logprobs


def test_a_chats_tokens_have_their_own_bytes(live: Live) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": 4}
    content = asked(live, "/v1/chat/completions", body)["content"]
    assert bytes(byte for entry in content for byte in entry["bytes"]) == TEXT.encode()
    tops = [bytes(entry["bytes"]) for entry in content[0]["top_logprobs"]]
    assert b"".join(tops) == "\N{GRINNING FACE}".encode()


def test_a_completions_tokens_are_told_apart(live: Live) -> None:
    made = asked(live, "/v1/completions", {"prompt": "a", "logprobs": 4, "max_tokens": 99})
    parts = [r"bytes:\xf0", r"bytes:\x9f", r"bytes:\x98", r"bytes:\x80"]
    assert made["top_logprobs"][0] == dict(zip(parts, [0.0, -1.0, -2.0, -3.0], strict=True))
    start = made["tokens"].index(parts[0])
    assert made["tokens"][start : start + 4] == parts
    place = TEXT.index("\N{GRINNING FACE}")
    assert made["text_offset"][start : start + 5] == [place, place, place, place, place + 1]


def test_a_responses_text_has_those_of_its_tokens(live: Live) -> None:
    """Whole and in a stream."""
    client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="none")
    options: Any = {"model": "tiny", "input": "a", "temperature": 0}
    (item,) = client.responses.create(**options, top_logprobs=4).output
    (said,) = item.content
    assert bytes(byte for entry in said.logprobs for byte in entry.bytes) == TEXT.encode()
    assert {len(entry.top_logprobs) for entry in said.logprobs} == {4}
    asked = options | {"include": ["message.output_text.logprobs"], "stream": True}
    events = list(client.responses.create(**asked))
    deltas = [one for one in events if one.type == "response.output_text.delta"]
    raws = [bytes(entry.bytes) for delta in deltas for entry in delta.logprobs]
    assert b"".join(raws) == TEXT.encode()
    (done,) = (one for one in events if one.type == "response.output_text.done")
    (whole,) = (one.response for one in events if one.type == "response.completed")
    kept = whole.output[0].content[0].logprobs
    assert [entry.logprob for entry in kept] == [entry.logprob for entry in done.logprobs]
    assert [entry.token for entry in kept] == [entry.token for entry in said.logprobs]


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({}, None),
        ({"top_logprobs": 0}, None),
        ({"top_logprobs": 3}, 3),
        ({"include": ["message.output_text.logprobs"]}, 0),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 2}, 2),
    ],
)
def test_how_many_of_the_likeliest_a_response_asks_for(
    fields: dict[str, Any], count: int | None
) -> None:
    (task,) = parse_responses({"input": "a", **fields}).tasks
    assert task.logprobs == count


def test_what_follows_a_broken_character_is_found_behind_it() -> None:
    writer = CompletionWriter(Envelope("id", 0, "tiny", ""), Parsed(None, []))
    raws = [b"on", b"\xf1", b" src", b"\xf0\x9f", b"\x98", b"\x80", b"!", b"\xde", b"\xde", b"a"]
    entries = tuple(TokenLogprob(raw.decode("utf-8", "replace"), raw, 0.0) for raw in raws)
    answer = Answer()
    answer.add(Text(0, b"".join(raws).decode("utf-8", "replace"), logprobs=entries))
    answer.add(Finished(0, "stop", Usage(), {}))
    choice = writer.body([answer])["choices"][0]
    assert choice["text"] == "on\ufffd src\N{GRINNING FACE}!\ufffd\ufffda"
    assert choice["logprobs"]["text_offset"] == [0, 2, 3, 7, 7, 7, 8, 9, 10, 11]


def test_words_of_sentencepieces_have_their_spaces() -> None:
    tokenizer = sentencepiece_tokenizer(["\u2581the", "the", "\u2581lazy", "\u2581dog", "s"])
    tokens = tokenizer.convert_tokens_to_ids(["\u2581the", "\u2581lazy", "\u2581dog", "s"])
    either = tuple((token, -1.0) for token in tokenizer.convert_tokens_to_ids(["\u2581the", "the"]))
    prompt = tokens[:2]
    job = Job(0, Encoded(prompt, continues=True), Decoding(prompt, 9, {}, logprobs=2))
    answering = Answering(job, tokenizer, dict, lambda _: 1.0)
    answer = Answer()
    for place, token in enumerate(tokens):
        reason = "length" if place == len(tokens) - 1 else None
        for event in answering.token(NewToken(0, token, "own", reason, -1.0, either)):
            answer.add(event)
    (choice,) = CompletionWriter(Envelope("id", 0, "tiny", ""), Parsed(None, [])).body([answer])[
        "choices"
    ]
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"] == " the lazy dogs"
    assert logprobs["text_offset"] == [0, 4, 9, 13]
    assert logprobs["top_logprobs"] == [{" the": -1.0, "the": -1.0}] * 4


@pytest.mark.parametrize(
    ("text", "entry", "raw"),
    [
        ("dog", "dog", b"dog"),
        ("\ufffd", "<0xE2>", b"\xe2"),
        (" \ufffd", "\u0120\u00e2", b" \xe2"),
        ("\ufffd", "\u00ef\u00bf\u00bd", b"\xef\xbf\xbd"),
        ("\ufffd", "\ufffd", b"\xef\xbf\xbd"),
        ("\ufffd", None, b"\xef\xbf\xbd"),
        ("\N{LATIN SMALL LETTER A WITH CIRCUMFLEX}", "\u00e2", b"\xc3\xa2"),
    ],
)
def test_the_vocabulary_tells_the_bytes(text: str, entry: str | None, raw: bytes) -> None:
    assert bytes_of(text, entry) == raw
