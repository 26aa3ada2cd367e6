"""Records that nothing is learned from do not take the places of others, nor end a run."""

from __future__ import annotations

import pytest
from bundles import make_bundle
from training_files import TINY, chats, write

from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.training.run import train_drafter
from mlx_redrafter.training.sources import has_answer, read_data

PROMPTS = [{"prompt": f"what is {i}?"} for i in range(60)]


def opening(*roles: str) -> dict:
    return {"messages": [{"role": role, "content": "Hello"} for role in roles]}


@pytest.mark.parametrize(
    ("record", "has"),
    [
        ({"prompt": "p"}, False),
        ({"prompt": "p", "completion": "c"}, True),
        ({"text": "t"}, True),
        ({"text": " \n"}, False),
        (opening("user"), False),
        (opening("assistant", "user"), False),
        (opening("assistant", "user", "assistant"), True),
    ],
)
def test_what_has_an_answer(record, has):
    assert has_answer(record) == has


def test_prompts_among_answered_records_are_left_out_before_the_split(tmp_path):
    notes: list[str] = []
    data = write(tmp_path / "mixed.jsonl", [*PROMPTS, *chats(20)])
    kept, held = read_data(data, held_out=64, note=notes.append)
    assert (len(kept), len(held)) == (18, 2)
    assert all(has_answer(record) for record in [*kept, *held])
    assert notes == [
        f"60 of 80 records of {data} have no answer, and are left out (with --regenerate the "
        "target answers them)."
    ]
    notes.clear()
    assert sum(map(len, read_data(data, held_out=64, answers=False, note=notes.append))) == 80
    assert notes == []
    train_drafter(make_bundle(tmp_path / "m", drafter=False), data, tmp_path / "out", **TINY)


def test_a_valid_split_is_read_until_enough_records_have_answers(tmp_path):
    write(tmp_path / "train.jsonl", chats(6))
    valid = [{"prompt": f"{i}?", "completion": "yes"} for i in range(4)]
    write(tmp_path / "valid.jsonl", [*PROMPTS, *valid])
    assert read_data(tmp_path, held_out=2)[1] == valid[:2]
    assert read_data(tmp_path, held_out=2, answers=False)[1] == PROMPTS[:2]
    write(tmp_path / "valid.jsonl", PROMPTS)
    with pytest.raises(RedrafterError, match=r"valid\.jsonl has prompts but no answers: let"):
        read_data(tmp_path, held_out=2)
