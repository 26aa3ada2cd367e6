"""Prompt files, and the prompts of all turns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bundles import make_tokenizer
from mlx_lm.tokenizer_utils import TokenizerWrapper
from transformers import AutoTokenizer

from mlx_redrafter.benchmark.prompts import Conversation, own_prompts, prepare, read_conversations
from mlx_redrafter.errors import RedrafterError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(directory)
    return TokenizerWrapper(AutoTokenizer.from_pretrained(str(directory)))


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def user(text):
    return {"role": "user", "content": text}


def test_spec_bench_and_mt_bench_lines_are_conversations(tmp_path):
    rows = {"question_id": 81, "category": "writing", "turns": ["one", "two"]}
    (found,) = read_conversations(write(tmp_path / "q.jsonl", rows))
    assert found == Conversation("question 81", "writing", (user("one"),), ("two",))


def test_no_category_is_not_one_that_is_called_none(tmp_path):
    rows = [{"category": None, "text": "a"}, {"category": None, "set": "math", "text": "b"}]
    rows[0]["question_id"] = None
    found = read_conversations(write(tmp_path / "q.jsonl", *rows))
    assert [one.category for one in found] == ["", "math"]
    assert found[0].name == "line 1"


def test_every_kind_of_line(tmp_path):
    messages = [
        {"role": "system", "content": "s"},
        user("u"),
        {"role": "assistant", "content": "a"},
    ]
    rows = [{"question": "q"}, {"messages": messages}, {"prompt": "p"}, {"text": "t"}]
    found = read_conversations(write(tmp_path / "q.jsonl", *rows))
    assert [c.opening for c in found] == [(user("q"),), tuple(messages[:2]), "p", "t"]
    assert [c.name for c in found] == ["line 1", "line 2", "line 3", "line 4"]


def test_json_lines_are_known_without_their_suffix(tmp_path):
    path = write(tmp_path / "questions", {"question": "q"})
    assert read_conversations(path)[0].opening == (user("q"),)


@pytest.mark.parametrize(
    ("text", "openings"),
    [
        ("one\ntwo\n\n", ["one", "two"]),
        ("one\nmore\n\n\n  two\n", ["one\nmore", "two"]),
        ("alone", ["alone"]),
    ],
)
def test_plain_text_is_a_question_a_line_or_a_paragraph(tmp_path, text, openings):
    (tmp_path / "q.txt").write_text(text, "utf-8")
    found = read_conversations(tmp_path / "q.txt")
    assert [c.opening for c in found] == [(user(opening),) for opening in openings]


def test_a_limit_takes_evenly_from_the_whole_file(tmp_path):
    path = write(tmp_path / "q.jsonl", *({"question": str(i)} for i in range(10)))
    assert [c.opening[0]["content"] for c in read_conversations(path, 4)] == ["0", "2", "5", "7"]
    assert len(read_conversations(path, 11)) == 10


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no prompts"),
        ('{"question": "q"}\nnonsense', "line 2 is not JSON"),
        ('{"answer": "a"}', "line 1 has no"),
        ('{"turns": []}', "line 1 has no"),
        ('{"turns": ["a", 3]}', "line 1 has no"),
        ('{"messages": [{"role": "user"}]}', "line 1 has no"),
        ('{"prompt": " "}', "line 1 has no"),
        ("[1]", "line 1 has no"),
        ("[" * 100_000, "line 1 is not JSON"),
        ("9" * 5000, "line 1 is not JSON"),
    ],
)
def test_what_is_no_prompts_file_is_told(tmp_path, text, words):
    (tmp_path / "q.jsonl").write_text(text, "utf-8")
    with pytest.raises(RedrafterError, match=words):
        read_conversations(tmp_path / "q.jsonl")


def test_a_missing_or_binary_file_is_told(tmp_path):
    with pytest.raises(RedrafterError, match="No such file"):
        read_conversations(tmp_path / "none.jsonl")
    (tmp_path / "q.jsonl").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(RedrafterError, match="not UTF-8"):
        read_conversations(tmp_path / "q.jsonl")


def test_a_bundle_brings_its_prompts_or_says_so(tmp_path):
    with pytest.raises(RedrafterError, match="--prompts"):
        own_prompts(tmp_path)
    with pytest.raises(RedrafterError, match=r"no model directory .*nowhere: check --model"):
        own_prompts(tmp_path / "nowhere")
    with pytest.raises(RedrafterError, match="no model directory /nowhere: check --model"):
        own_prompts(Path("/nowhere"))
    with pytest.raises(RedrafterError, match="owner/repo brings no"):
        own_prompts(Path("owner/repo"))
    path = write(tmp_path / "prompts.jsonl", {"prompt": "p"})
    assert own_prompts(tmp_path) == path


def test_later_turns_stand_behind_the_answers_of_one_contestant(tokenizer):
    asked = []

    def answer(ids):
        asked.append(tokenizer.decode(ids))
        return f"reply {len(asked)}"

    talk = Conversation("c", "", (user("one"),), ("two", "three"))
    prompts = prepare([talk, Conversation("t", "", "raw text")], tokenizer, answer)
    texts = [tokenizer.decode(list(prompt.tokens)) for prompt in prompts]
    assert texts == [
        "<|user|>one<|end|><|assistant|>",
        "<|user|>one<|end|><|assistant|>reply 1<|end|><|user|>two<|end|><|assistant|>",
        "<|user|>one<|end|><|assistant|>reply 1<|end|><|user|>two<|end|>"
        "<|assistant|>reply 2<|end|><|user|>three<|end|><|assistant|>",
        "raw text",
    ]
    assert asked == texts[:2]
    assert [(prompt.name, prompt.turn) for prompt in prompts] == [
        ("c", 1), ("c", 2), ("c", 3), ("t", 1),
    ]  # fmt: skip


def test_without_the_chat_template_everything_is_text(tokenizer):
    talk = Conversation("c", "", (user("one"),), ("two",))
    prompts = prepare([talk], tokenizer, lambda _ids: " reply", chat=False)
    texts = [tokenizer.decode(list(prompt.tokens)) for prompt in prompts]
    assert texts == ["one", "one reply\n\ntwo"]


def test_line_ends_inside_of_json_and_byte_order_marks(tmp_path):
    path = tmp_path / "q.jsonl"
    row = json.dumps({"question": "a\u2028b\x85c"}, ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + f"{row}\r\n{row}\n".encode())
    assert [c.opening for c in read_conversations(path)] == [(user("a\u2028b\x85c"),)] * 2


def test_a_json_array_is_refused_and_text_in_brackets_is_not(tmp_path):
    path = tmp_path / "q.json"
    path.write_text(json.dumps([{"question": "q"}]), "utf-8")
    with pytest.raises(RedrafterError, match="JSON array: write one object a line"):
        read_conversations(path)
    path.write_text("[sic] what is this?\n", "utf-8")
    assert read_conversations(path)[0].opening == (user("[sic] what is this?"),)
