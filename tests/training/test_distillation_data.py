"""Conversations to rows, and the target's own answers."""

from __future__ import annotations

from conversations import TEMPLATE, WORDS, chat, greedy, marked

import mlx_redrafter  # noqa: F401  (loads OpenBLAS before mlx)

import mlx.core as mx  # isort: skip
import numpy as np
import pytest
from mlx_lm.models import llama
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from training_cases import word_model
from transformers import PreTrainedTokenizerFast

from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.training import (
    read_jsonl,
    regenerate,
    special_tokens,
    split_rows,
    token_counts,
    tokenize,
    write_jsonl,
)
from mlx_redrafter.training.regeneration import seed_of_draws


@pytest.fixture(scope="module")
def tokenizer() -> TokenizerWrapper:
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="yes"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|end|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        chat_template=TEMPLATE,
    )
    return TokenizerWrapper(fast)


@pytest.fixture(scope="module")
def model() -> llama.Model:
    return word_model(len(WORDS))


def test_every_assistant_turn_and_its_end_count(tokenizer):
    (row,) = tokenize([chat("hi there", "how are", "you", "fine")], tokenizer)
    assert marked(row) == ["how", "are", "<|end|>", "fine", "<|end|>"]
    assert row.tokens.dtype == np.int32
    (row,) = tokenize([{"prompt": "hi", "completion": "fine"}], tokenizer)
    assert marked(row) == ["fine", "<|end|>"]


def test_a_truncated_answer_does_not_teach_its_end(tokenizer):
    record = chat("hi", "how are", "you", "fine yes") | {"truncated": True}
    (row,) = tokenize([record], tokenizer)
    assert marked(row) == ["how", "are", "<|end|>", "fine", "yes"]


def test_texts_count_whole_and_long_rows_are_cut(tokenizer):
    (row,) = tokenize([{"text": "hi there how are you"}], tokenizer)
    assert marked(row) == ["there", "how", "are", "you", "<|end|>"]
    (row,) = tokenize([{"text": "hi there how are you"}], tokenizer, max_seq_length=3)
    assert len(row.tokens) == 3
    # Hub datasets and tables write null for what a record does not have.
    (row,) = tokenize([{"text": "hi there how", "prompt_tokens": None}], tokenizer)
    assert marked(row) == ["there", "how", "<|end|>"]


def test_answers_that_are_all_cut_off_are_not_called_missing(tokenizer):
    chat = [{"role": "user", "content": "how are you"}, {"role": "assistant", "content": "fine"}]
    assert tokenize([{"messages": chat}], tokenizer)
    with pytest.raises(RedrafterError, match=r"behind the first 3 tokens .* max_seq_length"):
        tokenize([{"messages": chat}], tokenizer, max_seq_length=3)


def test_data_without_answers_is_refused(tokenizer):
    with pytest.raises(RedrafterError, match="no answers"):
        tokenize([{"prompt": "hi"}], tokenizer)
    with pytest.raises(RedrafterError, match="'messages', 'prompt' or 'text'"):
        tokenize([{"question": "hi"}], tokenizer)


@pytest.mark.parametrize("line", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}", "\ud800", "{}{}"])
def test_lines_that_no_parser_takes_are_named(tmp_path, line):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + line.encode("utf-8", "surrogatepass"))
    with pytest.raises(RedrafterError, match=r"data\.jsonl"):
        read_jsonl(path)


def test_jsonl_round_trip_and_its_errors(tmp_path):
    path = tmp_path / "data.jsonl"
    records = [chat("hé", "fine"), {"text": "x\ny"}]
    write_jsonl(path, records)
    assert read_jsonl(path) == read_jsonl(str(path)) == records
    path.write_text('{"text": "x"}\n\n[1]\n')
    with pytest.raises(RedrafterError, match="line 3"):
        read_jsonl(path)
    path.write_bytes(b'\xef\xbb\xbf{"text": "a\xe2\x80\xa8b"}\r\n')  # a mark at its beginning
    assert read_jsonl(path) == [{"text": "a\u2028b"}]
    path.write_bytes(b"PAR1\xff\xfe")
    with pytest.raises(RedrafterError, match="not UTF-8 text"):
        read_jsonl(path)
    with pytest.raises(RedrafterError, match="There is no file"):
        read_jsonl(tmp_path / "none.jsonl")


def test_counts_special_tokens_and_the_split(tokenizer):
    rows = tokenize([chat("hi", w) for w in ("fine", "fine", "how", "are")], tokenizer)
    counts = token_counts(rows, len(WORDS))
    assert {WORDS[i]: int(n) for i, n in enumerate(counts) if n} == {
        "<|end|>": 4, "fine": 2, "how": 1, "are": 1,
    }  # fmt: skip
    assert special_tokens(tokenizer) == [0, 1, 2]
    kept, held = split_rows(rows, 1, seed=5)
    assert len(kept) == 3
    assert len(held) == 1
    assert split_rows(rows, 1, seed=5)[1][0] is held[0]
    with pytest.raises(RedrafterError, match="hold out fewer"):
        split_rows(rows, 4)


def test_regenerated_answers_are_the_targets_own(model, tokenizer):
    records = [chat("hi there", "x", "how are you", "x"), {"prompt": "yes"}, chat("fine", "yes")]
    answered = list(regenerate(model, tokenizer, records, max_tokens=5, chunk_size=2))
    assert len(answered) == 3
    for source, record in zip((records[0], chat("yes"), records[2]), answered, strict=True):
        messages = record["messages"]
        asked = [m["content"] for m in source["messages"] if m["role"] == "user"]
        assert [m["content"] for m in messages if m["role"] == "user"] == asked[
            : len(messages) // 2
        ]
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                tokens, cut = greedy(model, tokenizer, messages[:i], 5)
                assert message["content"] == tokenizer.decode(tokens)
        assert record.get("truncated", False) == cut


def test_sampled_answers_come_from_the_seed_and_can_be_continued(model, tokenizer):
    records = [{"prompt": w} for w in ("hi", "you", "fine", "how", "are")]
    options = {"max_tokens": 6, "temperature": 1.0, "seed": 9, "chunk_size": 2}
    whole = list(regenerate(model, tokenizer, records, **options))
    mx.random.seed(123)
    assert list(regenerate(model, tokenizer, records, start=2, **options)) == whole[2:]
    assert list(regenerate(model, tokenizer, records, **(options | {"seed": 10}))) != whole


def test_any_seed_that_can_be_named_draws(model, tokenizer):
    """A run's part has a seed of its own, which for a small one is what it always was."""
    assert seed_of_draws(9, 2) == 9 * 1_000_003 + 2
    largest = [seed_of_draws(2**63 - 1 - i, number) for i in range(2) for number in range(3)]
    assert len(set(largest)) == 6
    assert all(0 <= seed < 2**64 for seed in largest)
    options = {"max_tokens": 4, "temperature": 1.0, "seed": 2**63 - 1, "chunk_size": 1}
    assert len(list(regenerate(model, tokenizer, [{"prompt": "hi"}] * 2, **options))) == 2


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% set n = namespace(n=9 + messages|length) %}"
        "{% for i in range(9) %}{% set n.n = n.n * 10 %}{% endfor %}{{ 'x' * n.n }}",
    ],
    ids=["endless", "giant"],
)
def test_a_template_of_the_target_is_stopped(tokenizer, source):
    tokenizer.chat_template = source
    try:
        with pytest.raises(RedrafterError, match="was stopped"):
            tokenize([chat("hi there", "how are")], tokenizer, 20)
    finally:
        tokenizer.chat_template = TEMPLATE
