"""No question is both learned from and evaluated on, however often it was answered."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from bundles import make_bundle
from training_files import TINY, chats, write

from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.training import held_out as module
from mlx_redrafter.training import sources
from mlx_redrafter.training.data import TokenRow
from mlx_redrafter.training.evaluation import prompts_of
from mlx_redrafter.training.held_out import (
    apart,
    asked,
    is_marked,
    learned_from,
    marks_of,
    split,
)
from mlx_redrafter.training.record import TrainingCallback
from mlx_redrafter.training.run import train_drafter
from mlx_redrafter.training.sources import read_data


def pair(question, answer) -> dict:
    return {"prompt": question, "completion": str(answer)}


def chat(*said, **more) -> dict:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]
    return {"messages": messages, **more}


def first_questions(records) -> set[str]:
    return {asked(record, first=True) for record in records}


SEVERAL_ANSWERS = {
    "side by side": [pair(f"q{i // 4}", i) for i in range(80)],
    "in rounds": [pair(f"q{i % 20}", i) for i in range(80)],
    "in both forms": [(pair, chat)[i % 2](f"q{i // 2}", str(i)) for i in range(80)],
    "other white space": [pair(("", " \n")[i % 2] + f"q  {i // 4}"[i % 2 :], i) for i in range(80)],
    "other follow-ups": [chat(f"q{i // 4}", "a", f"and {i}?", "b") for i in range(80)],
    "a record for each turn": [
        chat(*[f"q{i // 3}", "a", "and?", "b", "so?", "c"][: 2 * (i % 3) + 2]) for i in range(90)
    ],
    "after a greeting": [
        {"messages": [{"role": "assistant", "content": "Hi!"}, *turns["messages"]]}
        for turns in (chat(f"q{i // 4}", str(i)) for i in range(80))
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", SEVERAL_ANSWERS)
def test_all_answers_to_a_question_are_on_one_side(name):
    records = SEVERAL_ANSWERS[name]
    kept, held = split(records, 8, "data")
    assert not first_questions(kept) & first_questions(held)
    assert 6 <= len({learned_from(record) for record in held}) <= 8
    assert len(kept) + len(held) == len(records)


def test_texts_are_told_apart_as_a_whole():
    records = [{"text": f"Once  upon a time {i // 2}" + "\n" * (i % 2)} for i in range(80)]
    kept, held = split(records, 8, "data")
    assert len(held) == 8
    assert not {asked(r) for r in kept} & {asked(r) for r in held}


def test_the_questions_alone_say_what_is_held_out():
    """Or a run that goes on from a drafter would evaluate on what that one was taught."""
    records = [pair(f"q{i}", i % 3) for i in range(50)]
    _, held = split(records, 64, "data")
    drawn = {record["prompt"] for record in held}
    assert len(drawn) == 5
    answered = [chat(r["prompt"], "another answer", truncated=True) for r in reversed(records)]
    assert first_questions(split(answered, 64, "data")[1]) == first_questions(held)
    # Of more data it are the same ones and some more, as far as there is room.
    more = [pair(f"r{i}", i) for i in range(450)]
    assert drawn & {record["prompt"] for record in split([*records, *more], 64, "data")[1]}
    before = marks_of(held, records[:1])
    _, again = split([*more, *records], 8, "data", before=before)
    assert drawn < {record["prompt"] for record in again}
    assert len(again) == 8


def test_marks_are_of_what_is_not_learned_from():
    records = SEVERAL_ANSWERS["other follow-ups"]
    kept, held = split(records, 8, "data")
    marks = marks_of(held, kept)
    assert len(marks) == len(first_questions(held)) == 2
    assert all(is_marked(record, marks) for record in held)
    assert not any(is_marked(record, marks) for record in kept)
    assert is_marked(pair(json.loads(asked(held[0], first=True))[0][0][1], "other"), marks)
    assert marks_of(held, held) == []
    header = [chat("You are in a kitchen.", "OK", f"Find {i // 2}", str(i)) for i in range(80)]
    kept, held = split(header, 8, "data")
    marks = marks_of(held, kept)
    assert len(marks) == 4
    assert all(is_marked(record, marks) for record in held)
    assert not any(is_marked(record, marks) for record in kept)


def test_uneven_questions():
    """What has more answers than are asked for is learned from, as long as there is another."""
    often = [pair("often", i) for i in range(95)]
    kept, held = split([*often, *[pair(f"q{i}", 0) for i in range(5)]], 64, "data")
    assert kept == often
    assert len(held) == 5
    told: list[str] = []
    kept, held = split([pair(f"q{i % 2}", i) for i in range(100)], 64, "data", note=told.append)
    assert (len(kept), len(held)) == (50, 10)
    assert told == ["40 of the records ask what held-out ones ask, and are left out."]


@pytest.mark.parametrize("answers", [True, False])
def test_a_single_question_cannot_be_parted(answers):
    with pytest.raises(RedrafterError, match=r"All 9 records of data ask the same, and a question"):
        split([pair("q", i) for i in range(9)], 1, "data", answers=answers)


def test_what_most_conversations_open_with_is_no_question():
    records = [chat("You are in a kitchen.", "OK", f"Find {i // 2}", str(i)) for i in range(80)]
    kept, held = split(records, 8, "data")
    assert len(kept) == 72
    assert not {asked(r) for r in kept} & {asked(r) for r in held}
    assert apart(kept, held) == kept


def test_questions_that_the_target_answers_count_once():
    """Held out eight times, a question would be answered alike eight times."""
    records = [pair(f"q{i // 4}", i) for i in range(400)]
    told: list[str] = []
    kept, held = split(records, 8, "data", answers=False, note=told.append)
    assert (len(kept), len(held), len(first_questions(held))) == (368, 8, 8)
    assert not first_questions(kept) & first_questions(held)
    assert "24 of the records" in told[0]


def test_a_valid_split_is_not_learned_from(tmp_path):
    train = [*SEVERAL_ANSWERS["side by side"], chat("q1", "x", "and?", "y"), {"text": "the  end"}]
    write(tmp_path / "train.jsonl", train)
    valid = [pair(" q0", "other"), chat("q1", "other"), {"text": "the end\n"}, pair("q2", "unread")]
    write(tmp_path / "valid.jsonl", valid)
    told: list[str] = []
    kept, held = read_data(tmp_path, held_out=3, note=told.append)
    assert held == valid[:3]
    assert kept == train[8:80]
    assert told == ["10 of the records ask what held-out ones ask, and are left out."]
    write(tmp_path / "valid.jsonl", [*valid, pair(" q0", "again"), pair("q2", "again")])
    assert read_data(tmp_path, held_out=6, answers=False)[1] == valid
    write(tmp_path / "train.jsonl", train[:8])
    with pytest.raises(RedrafterError, match=re.escape(f"training records of {tmp_path} ask the")):
        read_data(tmp_path, held_out=3)


def test_each_prompt_is_decoded_once():
    """Or rounds of answers to the same questions would be a few prompts, many times."""
    tokens = [np.array([1, i % 4, 7, i], dtype=np.int32) for i in range(16)]
    rows = [TokenRow(row, np.arange(4) >= 2) for row in tokens]
    assert prompts_of(rows) == [[1, 0], [1, 1], [1, 2], [1, 3]]
    assert prompts_of(rows, 2) == [[1, 0], [1, 2]]


class Stop(TrainingCallback):
    def stage(self, name, done, total):
        if name == "training" and done == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("more", [{}, {"regenerate": True, "regenerate_max_tokens": 8}])
def test_a_run_begun_with_another_drawing_is_told_why_it_cannot_go_on(tmp_path, monkeypatch, more):
    bundle = make_bundle(tmp_path / "m", drafter=False)
    asked_twice = [chat(q["messages"][0]["content"], a) for q in chats(12) for a in ("the", "dog")]
    data, out = write(tmp_path / "d.jsonl", asked_twice), tmp_path / "out"
    with monkeypatch.context() as earlier:
        earlier.setattr(module, "_WAYS", (learned_from,))
        earlier.setattr(sources, "split", lambda *given, answers, **more: split(*given, **more))
        with pytest.raises(KeyboardInterrupt):
            train_drafter(bundle, data, out, callback=Stop(), **TINY, **more)
    with pytest.raises(RedrafterError, match=r"data.* \(the files, or what this version holds out"):
        train_drafter(bundle, data, out, resume=True, **TINY, **more)
    train_drafter(bundle, data, out, overwrite=True, **TINY, **more)


class Notes(TrainingCallback):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def test_a_run_that_goes_on_holds_out_what_was_held_out_before(tmp_path):
    bundle = make_bundle(tmp_path / "m", drafter=False)
    data, first = write(tmp_path / "d.jsonl", chats(40)), tmp_path / "first"
    settings = {**TINY, "steps": 2, "held_out": 4}
    anew = {"regenerate": True, "regenerate_max_tokens": 8}
    train_drafter(bundle, data, first, **settings, **anew)
    marks = json.loads((first / "training.json").read_text())["held_out_questions"]
    assert len(marks) == 4
    on = {k: v for k, v in settings.items() if k not in ("exit_dim", "num_draft_layers")}
    on |= {"start_from": str(first), "seed": 1}
    for name, of in (("again", data), ("own", first / "training" / "answers.jsonl")):
        listener, out = Notes(), tmp_path / name
        train_drafter(bundle, of, out, callback=listener, **on)
        assert json.loads((out / "training.json").read_text())["held_out_questions"] == marks
        assert not any("may have learned" in note for note in listener.notes)


def test_figures_of_what_may_have_been_learned_are_told(tmp_path):
    bundle = make_bundle(tmp_path / "m", drafter=False)
    questions, first = chats(40), tmp_path / "first"
    settings = {**TINY, "steps": 2, "held_out": 2}
    train_drafter(bundle, write(tmp_path / "d.jsonl", questions), first, **settings)
    marks = json.loads((first / "training.json").read_text())["held_out_questions"]
    held = [record for record in questions if is_marked(record, marks)]
    other = next(record for record in questions if not is_marked(record, marks))
    write(tmp_path / "data" / "train.jsonl", questions)
    write(tmp_path / "data" / "valid.jsonl", [held[0], other])
    on = {k: v for k, v in settings.items() if k not in ("exit_dim", "num_draft_layers")}
    on |= {"start_from": str(first)}
    for name, count, left in (("second", 1, marks_of(held[:1], [])), ("third", 2, [])):
        listener = Notes()
        train_drafter(bundle, tmp_path / "data", tmp_path / name, callback=listener, **on)
        told = f"{first} may have learned from {count} of the 2 records that are held out now"
        assert any(told in note for note in listener.notes)
        card = json.loads((tmp_path / name / "training.json").read_text())
        assert card["held_out_questions"] == left
        (first / "training.json").unlink(missing_ok=True)
