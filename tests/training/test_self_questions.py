"""Questions that a chat model draws itself."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from bundles import make_bundle
from conversations import TEMPLATE, WORDS
from mlx_lm.models import llama
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from training_cases import word_model
from training_files import TINY, chats, write
from transformers import PreTrainedTokenizerFast

import mlx_redrafter  # noqa: F401  (loads OpenBLAS before mlx)
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.training import target_texts as module
from mlx_redrafter.training.regeneration import Answer
from mlx_redrafter.training.run import train_drafter
from mlx_redrafter.training.target_texts import (
    QuestionSettings,
    question_file,
    question_of,
    user_header,
)


def make_tokenizer(template: str | None = TEMPLATE) -> TokenizerWrapper:
    """Whole words."""
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="yes"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    fast.chat_template = template
    return TokenizerWrapper(fast)


SETTINGS = QuestionSettings(6, max_tokens=24, batch_size=4)


@pytest.fixture(scope="module")
def model() -> llama.Model:
    return word_model(len(WORDS))


def ask(path, model, settings=SETTINGS, **options):
    return question_file(path, model, make_tokenizer(), settings, target_sha256="t", **options)


def texts(records):
    return [record["messages"][0]["content"] for record in records]


def test_the_header_is_what_stands_before_a_question():
    tokenizer = make_tokenizer()
    header = user_header(tokenizer)
    assert tokenizer.decode(header.before).split() == ["<|user|>"]
    assert set(tokenizer.eos_token_ids) <= header.ends


def test_models_without_a_template_are_refused():
    with pytest.raises(RedrafterError, match="no chat template"):
        user_header(make_tokenizer(None))
    with pytest.raises(RedrafterError, match="no place for a question"):
        user_header(make_tokenizer("{% for m in messages %}hi{% endfor %}"))
    with pytest.raises(RedrafterError, match="none: pass --data"):
        user_header(make_tokenizer("{% for m in messages %}{{ m['content'] }}{% endfor %}"))
    assert "content" in TEMPLATE


def test_questions_end_are_of_a_usual_length_and_come_once(tmp_path, model):
    seen = []
    found = texts(ask(tmp_path / "q.jsonl", model, progress=lambda *now: seen.append(now)))
    assert len(found) == len({text.casefold() for text in found}) == 6
    assert all(len(text) >= module.SHORTEST for text in found)
    assert all(set(text.split()) <= set(WORDS) for text in found)
    assert seen[0] == (0, 6)
    assert seen[-1] == (6, 6)


def test_any_seed_that_can_be_named_draws_questions(tmp_path, model):
    settings = replace(SETTINGS, seed=2**63 - 1)
    assert len(ask(tmp_path / "q.jsonl", model, settings)) == SETTINGS.count


def test_more_questions_begin_with_the_same_ones(tmp_path, model):
    few = texts(ask(tmp_path / "few.jsonl", model))
    many = texts(ask(tmp_path / "many.jsonl", model, QuestionSettings(12, 24, 0, 4)))
    assert many[:6] == few
    again = texts(ask(tmp_path / "few.jsonl", model, QuestionSettings(12, 24, 0, 4)))
    assert again == many
    other = texts(ask(tmp_path / "other.jsonl", model, QuestionSettings(6, 24, 1, 4)))
    assert other != few


def test_an_interrupted_run_goes_on_to_the_same_questions(tmp_path, model):
    whole = texts(ask(tmp_path / "whole.jsonl", model))

    class Stopped(Exception):
        pass

    def stop(done, _wanted):
        if done >= 3:
            raise Stopped

    path = tmp_path / "q.jsonl"
    with pytest.raises(Stopped):
        ask(path, model, progress=stop)
    with path.open("a") as file:
        file.write('{"messages": [{"role": "us')
    assert texts(ask(path, model)) == whole
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert texts(lines)[:6] == whole


@pytest.mark.parametrize(
    "damaged",
    ['{"messages": "hi", "batch": 0}', '{"messages": [{"role": "user", "content": "hi"}]}', "7"],
)
def test_damaged_questions_are_drawn_again(tmp_path, model, damaged):
    """From the first of them on; those before it stay."""
    path = tmp_path / "q.jsonl"
    whole = texts(ask(path, model))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], damaged, *lines[3:]]) + "\n")
    assert texts(ask(path, model)) == whole


def test_questions_of_another_kind_are_not_mixed_in(tmp_path, model):
    path = tmp_path / "q.jsonl"
    ask(path, model)
    with pytest.raises(RedrafterError, match="another seed"):
        ask(path, model, QuestionSettings(6, 24, 1, 4))
    ask(path, model, QuestionSettings(6, 24, 1, 4), overwrite=True)


def test_what_is_not_kept():
    tokenizer = make_tokenizer()
    header = user_header(tokenizer)

    def kept(text, end=0):
        return question_of(Answer(tokenizer.encode(text), end), tokenizer, header)

    assert kept("hi there how are you") == "hi there how are you"
    assert kept("hi there how are you", None) is None
    assert kept("hi") is None
    assert kept("how are <|user|> you") is None


def test_a_model_that_writes_none_is_told_of(tmp_path, model, monkeypatch):
    monkeypatch.setattr(module, "SHORTEST", 10_000)
    with pytest.raises(RedrafterError, match="only 0 could be kept"):
        ask(tmp_path / "q.jsonl", model, QuestionSettings(5, 24, 0, 64))


@pytest.fixture
def curious(monkeypatch):
    """Random models hardly ask: questions are put into the mouth of a tiny bundle's."""
    from bundles import PROSE

    words = " ".join(PROSE).split()

    def draw(model, tokenizer, prompts, max_tokens, sampler, tick, *, ends):
        draw.count += 1
        return [
            Answer(tokenizer.encode(f"{' '.join(words[i : i + 4])} {draw.count} {i}"), 0)
            for i in range(len(prompts))
        ]

    draw.count = 0
    monkeypatch.setattr(module, "decode_batch", draw)


def test_training_needs_nothing_else(tmp_path, curious):
    bundle = make_bundle(tmp_path / "m", drafter=False)
    options = {**TINY, "regenerate_max_tokens": 12, "regenerate_batch_size": 4}
    report = train_drafter(bundle, self_questions=12, output=tmp_path / "d", **options)
    assert (tmp_path / "d" / "model.safetensors").is_file()
    work = tmp_path / "d" / "training"
    assert len((work / "questions.jsonl").read_text().splitlines()) >= 12
    answers = [json.loads(line) for line in (work / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 12
    assert all(row["messages"][1]["role"] == "assistant" for row in answers)
    settings = json.loads((work / "answers.json").read_text())
    assert settings["temperature"] == [0.0, 0.0, 0.7, 1.0]
    assert report is not None


def test_questions_are_added_to_data(tmp_path, curious):
    bundle = make_bundle(tmp_path / "m", drafter=False)
    write(tmp_path / "data" / "train.jsonl", chats(4))
    write(tmp_path / "data" / "valid.jsonl", chats(6)[4:])
    options = {**TINY, "regenerate_max_tokens": 8, "regenerate_batch_size": 4}
    train_drafter(
        bundle, tmp_path / "data", tmp_path / "d", self_questions=5, steps=2,
        **{k: v for k, v in options.items() if k != "steps"},
    )  # fmt: skip
    answers = (tmp_path / "d" / "training" / "answers.jsonl").read_text().splitlines()
    assert len(answers) == 4 + 2 + 5


def test_own_questions_that_open_as_held_out_conversations_are_left_out(tmp_path, curious):
    bundle = make_bundle(tmp_path / "m", drafter=False)
    options = {**TINY, "steps": 2, "regenerate_max_tokens": 8, "regenerate_batch_size": 4}
    train_drafter(bundle, output=tmp_path / "d", self_questions=5, **options)
    lines = (tmp_path / "d" / "training" / "questions.jsonl").read_text().splitlines()
    opening = json.loads(lines[2])["messages"]
    followed = [{"role": "assistant", "content": "fine"}, {"role": "user", "content": "the cat"}]
    write(tmp_path / "data" / "train.jsonl", chats(4))
    write(tmp_path / "data" / "valid.jsonl", [{"messages": [*opening, *followed]}])
    (tmp_path / "d" / "training" / "answers.jsonl").unlink()
    train_drafter(
        bundle, tmp_path / "data", tmp_path / "d", self_questions=5, overwrite=True, **options
    )
    answers = (tmp_path / "d" / "training" / "answers.jsonl").read_text().splitlines()
    first = [json.loads(line)["messages"][0] for line in answers]
    assert len(first) == 1 + 4 + 4
    assert first.count(opening[0]) == 1


def test_without_data_the_flag_is_told(tmp_path):
    with pytest.raises(RedrafterError, match="--self-questions N"):
        train_drafter(tmp_path)
