"""The target's own answers as data: the tokens it wrote, whatever templates make of them."""

from __future__ import annotations

import json

import mlx_redrafter  # noqa: F401  (loads OpenBLAS before mlx)

import mlx.core as mx  # isort: skip
import numpy as np
import pytest
from conversations import TEMPLATE, WORDS, chat, greedy, marked
from mlx_lm.models import llama
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from training_cases import word_model
from transformers import PreTrainedTokenizerFast

from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.training import regenerate, special_tokens, tokenize
from mlx_redrafter.training.data import is_text
from mlx_redrafter.training.regeneration import unlike
from mlx_redrafter.training.sources import read_data
from mlx_redrafter.training.target_texts import AnswerSettings, answer_file

THOUGHTLESS = TEMPLATE.replace(
    "m['content'] +",
    "(m['content'].split(' ')[-1] if m['role'] == 'assistant' else m['content']) +",
)
OPENING = TEMPLATE.replace("'<|assistant|> ' }}", "'<|assistant|> how are ' }}")
STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
)


def make_tokenizer(template: str | None = TEMPLATE, *, begin: bool = False) -> TokenizerWrapper:
    """Whole words; ``begin`` puts <|user|> before every text, as others put a mark of its begin."""
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="yes"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    if begin:
        inner.post_processor = processors.TemplateProcessing(
            single="<|user|> $A", special_tokens=[("<|user|>", 1)]
        )
    names = {"bos_token": "<|user|>"} if begin else {}
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>", **names)
    fast.chat_template = template
    return TokenizerWrapper(fast)


@pytest.fixture(scope="module")
def model() -> llama.Model:
    return word_model(len(WORDS))


def test_what_a_template_drops_is_learned_all_the_same(model):
    tokenizer = make_tokenizer(THOUGHTLESS)
    records = [chat("hi there", "x", "how are you", "x"), {"prompt": "yes"}]
    answered = list(regenerate(model, tokenizer, records, max_tokens=5))
    assert any("token_ids" in record for record in answered)
    asked = [(r, i) for r in answered for i, m in enumerate(r["messages"]) if i % 2]
    rows = tokenize(answered, tokenizer)
    assert len(rows) == len(asked)
    for row, (record, i) in zip(rows, asked, strict=True):
        tokens, cut = greedy(model, tokenizer, record["messages"][:i], 5)
        assert row.tokens[row.answer].tolist() == tokens + ([] if cut else [0])
        assert row.answer[-1]
        assert not row.answer[: -len(tokens) - (not cut)].any()


def test_no_answer_begins_where_nothing_is_learned_any_more(model):
    tokenizer = make_tokenizer()
    records = [chat("hi there", "x", " ".join(["how"] * 120), "x", "are you", "x"), chat("hi", "x")]
    drawn = {"max_tokens": 60, "temperature": 1.0, "seed": 1}
    whole = list(regenerate(model, tokenizer, records, **drawn))
    assert [len(record["messages"]) for record in whole] == [6, 2]
    ticks: list[int] = []
    cut = list(
        regenerate(model, tokenizer, records, **drawn, longest=100, tick=lambda: ticks.append(1))
    )
    assert [len(record["messages"]) for record in cut] == [3, 2]
    assert cut[0]["truncated"] is True
    assert "truncated" not in cut[1]
    assert cut[0]["messages"][1] == whole[0]["messages"][1]
    answers = [len(record["messages"][1]["content"].split()) for record in cut]
    assert len(ticks) <= max(answers) + 2  # side by side, and none after them
    assert len(tokenize(cut, tokenizer, 100)) == 2


def test_answers_end_with_what_is_learned_from(model):
    tokenizer = make_tokenizer()
    (whole,) = regenerate(model, tokenizer, [{"prompt": "yes"}], max_tokens=5)
    prompt = len(tokenizer.apply_chat_template(whole["messages"][:1], add_generation_prompt=True))
    (cut,) = regenerate(model, tokenizer, [{"prompt": "yes"}], max_tokens=5, longest=prompt + 2)
    assert cut["truncated"] is True
    words = whole["messages"][1]["content"].split()
    assert cut["messages"][1]["content"].split() == words[:2]
    (text,) = regenerate(
        model, tokenizer, [{"text": "hi there how are you"}], max_tokens=5, longest=3
    )
    assert text["prompt_tokens"] == 2


def test_prompts_that_leave_no_room_for_answers_are_told(model):
    tokenizer = make_tokenizer()
    answered = list(regenerate(model, tokenizer, [chat("hi there", "x")], longest=2))
    assert [m["role"] for m in answered[0]["messages"]] == ["user"]
    with pytest.raises(RedrafterError, match="max_seq_length"):
        tokenize(answered, tokenizer, 2)


def test_tokens_are_kept_only_where_the_text_does_not_give_them(model):
    tokenizer = make_tokenizer()
    records = [chat("hi there", "x", "how are you", "x"), {"prompt": "yes"}]
    answered = list(regenerate(model, tokenizer, records, max_tokens=5))
    assert not any("token_ids" in record for record in answered)


def test_tokens_of_another_tokenizer_are_left_alone():
    tokenizer = make_tokenizer()
    kept = {"tokenizer": "another's", "answers": [{"tokens": [7, 7, 7], "prompt_tokens": 1}]}
    (row,) = tokenize([chat("hi", "fine") | {"token_ids": kept}], tokenizer)
    assert marked(row) == ["fine", "<|end|>"]


def test_an_edited_text_is_learned_from_as_it_stands(model):
    """Its token ids are those of what stood there before."""
    tokenizer = make_tokenizer(THOUGHTLESS)
    answered, *_ = regenerate(model, tokenizer, [{"prompt": "hi there"}], max_tokens=5)
    answered = json.loads(json.dumps(answered))
    written = answered["token_ids"]["answers"][0]["tokens"]

    def learned(record):
        (row,) = tokenize([record], tokenizer)
        return row.tokens.tolist()

    assert learned({**answered, "from": "a run"}) == written
    question, answer = answered["messages"]
    for edited in (
        {"messages": [question, {**answer, "content": "fine you"}]},
        {"messages": [{**question, "content": "you"}, answer]},
    ):
        found = learned({**answered, **edited})
        assert found == learned(edited | {"truncated": answered.get("truncated", False)})
        assert found != written
    del answered["token_ids"]["text"]  # as earlier versions kept them
    assert learned(answered) == written


def test_texts_that_begin_with_a_mark_are_continued_behind_one(model):
    tokenizer = make_tokenizer(begin=True)
    texts = [{"text": "hi there how are you"}, {"text": ""}, {"text": "fine yes how are you"}]
    options = {"max_tokens": 4, "prompt_tokens": 3}
    answered = list(regenerate(model, tokenizer, texts, **options))
    assert answered[1] == {"text": ""}
    rows = tokenize(answered, tokenizer)
    for row, begun in zip(rows, ([1, 3, 4], [1, 8, 9]), strict=True):
        assert row.tokens[:3].tolist() == begun
        assert not row.answer[:3].any()
        written = row.tokens[row.answer].tolist()
        expected: list[int] = []
        while len(expected) < 4 and 0 not in expected:
            expected.append(mx.argmax(model(mx.array([begun + expected]))[0, -1]).item())
        assert written == expected


def test_an_answer_begins_where_the_prompt_for_it_parts_from_the_text():
    (row,) = tokenize([chat("hi", "fine yes")], make_tokenizer(OPENING))
    assert marked(row) == ["fine", "yes", "<|end|>"]


def test_templates_that_refuse_are_told_in_a_sentence(model, tmp_path):
    tokenizer = make_tokenizer(STRICT + TEMPLATE)
    refused = {"messages": [{"role": "system", "content": "yes"}, *chat("hi", "fine")["messages"]]}
    with pytest.raises(RedrafterError, match=r"refuses.*no system role.*system, user.*'yes'"):
        tokenize([refused], tokenizer)
    # Before any of the answers is made, or a long run would end at its last record.
    path = tmp_path / "answers.jsonl"
    for other, told in ((tokenizer, "no system role"), (make_tokenizer(None), "no chat template")):
        with pytest.raises(RedrafterError, match=told):
            answer_file(
                path, model, other, [chat("hi"), refused], AnswerSettings(chunk_size=1),
                target_sha256="x",
            )  # fmt: skip
        assert not path.exists()


def test_answers_under_another_template_are_not_used_again(model, tmp_path):
    path, settings = tmp_path / "answers.jsonl", AnswerSettings(max_tokens=2, chunk_size=1)

    def answers(template):
        tokenizer = make_tokenizer(template)
        return answer_file(
            path, model, tokenizer, [chat("hi")], settings, target_sha256="x"
        )  # fmt: skip

    made = answers(TEMPLATE)
    assert answers(TEMPLATE) == made
    with pytest.raises(RedrafterError, match="were made with another template"):
        answers(OPENING)


def test_what_asks_the_same_as_held_out_records_is_not_learned_from(model):
    """Greedily, it would be answered the same, whatever its own answers are."""
    tokenizer = make_tokenizer()
    held = [chat("hi there", "fine"), {"prompt": "yes"}, {"text": "how are you fine"}, {"text": ""}]
    alike = [chat("hi there", "yes"), {"prompt": "yes", "completion": "hi"}, {"text": "how are hi"}]
    others = [chat("hi", "fine"), chat("hi there", "x", "yes"), {"text": "how is it"}]
    others.append(chat("hi there", "fine") | {"tools": [{"name": "x"}]})
    assert unlike([*alike, *others], held, tokenizer, prompt_tokens=2) == others
    assert unlike(alike, held, tokenizer) == [alike[2]]
    assert unlike([*alike, *others], held, tokenizer, longest=3) == others
    with pytest.raises(RedrafterError, match="nothing is left to learn from"):
        unlike(alike, held, tokenizer, prompt_tokens=2)


@pytest.mark.parametrize("overwrite", [False, True])
def test_answers_that_lost_their_neighbour_are_not_thrown_away(model, tmp_path, overwrite):
    path, settings = tmp_path / "answers.jsonl", AnswerSettings(max_tokens=2, chunk_size=1)

    def answers(overwrite=False):
        return answer_file(
            path, model, make_tokenizer(), [chat("hi")], settings,
            target_sha256="x", overwrite=overwrite,
        )  # fmt: skip

    made = answers()
    kept, beside = path.read_text(), path.with_suffix(".json").read_text()
    path.with_suffix(".json").unlink()
    with pytest.raises(RedrafterError, match=r"but no answers\.json, which says"):
        answers(overwrite)
    assert path.read_text() == kept
    path.with_suffix(".json").write_text(beside)
    assert answers() == made


@pytest.mark.parametrize("damaged", ['{"messages": 3}', '{"messages": [1]}', "null", '{"text": 1}'])
def test_damaged_answers_are_made_again(model, tmp_path, damaged):
    path, settings = tmp_path / "answers.jsonl", AnswerSettings(max_tokens=2, chunk_size=1)
    records = [chat(word) for word in ("hi", "you", "there")]

    def answers():
        return answer_file(path, model, make_tokenizer(), records, settings, target_sha256="x")

    made = answers()
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], damaged, lines[2]]) + "\n")
    assert answers() == made
    assert path.read_text().splitlines() == lines


def test_tools_reach_the_template():
    tokenizer = make_tokenizer("{% if tools %}{{ 'yes yes ' }}{% endif %}" + TEMPLATE)
    (row,) = tokenize([chat("hi", "fine") | {"tools": [{"name": "x"}]}], tokenizer)
    assert row.tokens.tolist()[:3] == [9, 9, 1]
    assert marked(row) == ["fine", "<|end|>"]


def test_kinds_of_records_are_told_apart_as_mlx_lm_does(tmp_path):
    pair = {"prompt": "hi", "completion": "fine"}
    assert not is_text({**pair, "text": "you"})
    assert is_text({"prompt": "hi", "text": "you"})
    (row,) = tokenize([{**pair, **chat("you", "there"), "text": "you"}], make_tokenizer())
    assert marked(row) == ["fine", "<|end|>"]
    call = {"role": "assistant", "tool_calls": [{"name": "x"}]}
    path = tmp_path / "d.jsonl"
    line = '{"messages": [{"role": "user", "content": "%s"}, {"role": "x"}]}\n'
    path.write_text(line % "a" + line % "b")
    with pytest.raises(RedrafterError, match="'messages' has to be a list"):
        read_data(path, held_out=1)
    path.write_text(path.read_text().replace('{"role": "x"}', str(call).replace("'", '"')))
    assert len(read_data(path, held_out=1)[0]) == 1


def test_special_tokens_without_a_name_are_special_too():
    tokenizer = make_tokenizer()
    assert special_tokens(tokenizer) == [0]
    tokenizer.add_tokens([AddedToken("<|call|>", special=True), AddedToken("word", special=False)])
    assert special_tokens(tokenizer) == [0, len(WORDS)]
    assert np.array(tokenizer.encode("<|call|>")).tolist() == [len(WORDS)]


def test_texts_of_a_tokenizer_without_an_end_have_none():
    tokenizer = make_tokenizer()
    tokenizer._tokenizer.eos_token = None
    (row,) = tokenize([{"text": "hi there how are"}], tokenizer)
    assert marked(row) == ["there", "how", "are"]


def test_texts_of_nothing_but_spaces_are_left_out(model):
    tokenizer = make_tokenizer()
    texts = [{"text": "  "}, {"text": "hi there how are"}]
    assert len(tokenize(texts, tokenizer)) == 1
    assert len(tokenize([{"text": "  ", "truncated": True}, texts[1]], tokenizer)) == 1
    answered = list(regenerate(model, tokenizer, texts, max_tokens=3, prompt_tokens=2))
    assert answered[0] == texts[0]
    assert len(tokenize(answered, tokenizer)) == 1
