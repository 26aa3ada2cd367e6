"""Tests of the recipe that need no trained model: ``python -m pytest models/recipe``."""

import random
import zlib
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="targets are trained with PyTorch: pip install -e '.[torch]'")

from models.recipe.corpus import Item, arguments_of, make_item, shorten, summary
from models.recipe.phrases import FOLLOW_UPS, HELD_OUT, TRAINED
from models.recipe.questions import (
    Asker,
    held_out_questions,
    held_out_small_talk,
    held_out_template,
    training_conversations,
)
from models.recipe.tokenizer import chat_text, load_tokenizer, train_tokenizer
from models.recipe.train_target import Schedule, encode_turns, epoch_batches, pack


@pytest.fixture(scope="module")
def items() -> list[Item]:
    names = [f"itertools.part_{i}" for i in range(30)] + [f"numpy.thing_{i}" for i in range(30)]
    return [
        Item(n, shorten(n), "function", f"{shorten(n)}(a, b={i})", f"Does {n}.")
        for i, n in enumerate(names)
    ]


@pytest.fixture(scope="module")
def tokenizer_path(items: list[Item], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    turns = Asker(items).epoch(random.Random(0))
    train_tokenizer([text for t in turns for text in (t.question, t.answer)], 600, path)
    return path


def test_templates_are_disjoint_and_have_one_name():
    assert not set(TRAINED) & set(HELD_OUT)
    assert all(t.count("{}") == 1 for t in (*TRAINED, *HELD_OUT, *FOLLOW_UPS))


def test_items_from_documentation():
    item = make_item("math.hypot", __import__("math").hypot, "function")
    assert item is not None
    assert item.signature.startswith("math.hypot(")
    assert item.text.endswith(".")
    assert shorten("numpy.linalg.norm") == "np.linalg.norm"
    assert shorten("mlx.nn.Linear") == "nn.Linear"
    assert summary("f(x) -> y\n\nReturn y. See the notes.") == "Return y. See the notes."


def test_arguments_of_an_extension_function():
    class Opaque:
        __signature__ = "none"

    doc = "matmul(a: array, b: array, /, *, stream: Stream = None) -> array\n\nMultiply."
    assert arguments_of(Opaque(), doc, "matmul", False) == "(a, b, /, *, stream=None)"
    doc = "reshape(self, *shape) -> array\n\nReshape."
    assert arguments_of(Opaque(), doc, "reshape", True) == "(*shape)"


def test_an_epoch_is_a_function_of_its_seed_and_covers_every_item(items: list[Item]):
    asker = Asker(items)
    first, again = (asker.epoch(random.Random("s")) for _ in range(2))
    assert first == again
    assert {item.answer for item in items} <= {turn.answer for turn in first}
    chats = training_conversations(items, 2, 1)
    assert all(chat[-1]["role"] == "assistant" for chat in chats)


def test_what_is_held_out_is_never_trained(items: list[Item]):
    asker = Asker(items)
    rng = random.Random(3)
    for _ in range(300):
        name = asker.unknown_name(rng)
        assert zlib.crc32(name.encode()) % 10
        assert name not in asker.known
        assert zlib.crc32(asker.unknown_name(rng, held_out=True).encode()) % 10 == 0
    trained = {turn.question for _ in range(20) for turn in asker.epoch(rng)}
    for item in items:
        assert TRAINED[held_out_template(item)].format(item.short) not in trained
    assert not trained & {turn.question for turn in held_out_small_talk()}
    rows = held_out_questions(items, 0)
    assert not trained & {row["question"] for row in rows if row["set"] == "unknown"}


def test_rows_hold_whole_turns(items: list[Item], tokenizer_path: Path):
    tokenizer = load_tokenizer(tokenizer_path)
    turns = encode_turns(tokenizer, Asker(items).epoch(random.Random(0)))
    rows = pack(turns, [[3, 5, 0]], 256, random.Random(0))
    assert all(len(tokens) == len(counted) <= 256 for tokens, counted in rows)
    assert sum(sum(counted) for _, counted in rows) == sum(sum(counted) for _, counted in turns)
    assert all(tokens[-1] == 0 for tokens, _ in rows)  # every row ends with the end token


def test_batches_are_the_same_whenever_they_are_made(items: list[Item], tokenizer_path: Path):
    tokenizer = load_tokenizer(tokenizer_path)
    first, again = (epoch_batches(Asker(items), tokenizer, Schedule(), 2) for _ in range(2))
    pairs = [pair for x, y in zip(first, again, strict=True) for pair in zip(x, y, strict=True)]
    assert all((a == b).all() for a, b in pairs)


def test_chat_template_matches_training_text(tokenizer_path: Path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " What is np? "},
        {"role": "assistant", "content": "NumPy."},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == chat_text(messages)
    asked = tokenizer.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    assert text.startswith(asked)
    assert asked.endswith("<|assistant|>")
    assert tokenizer.decode(tokenizer.encode("naïve 漢字  x_y")) == "naïve 漢字  x_y"
    assert tokenizer.eos_token == "<|end|>"
