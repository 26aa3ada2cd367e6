"""SentencePiece's pieces and scores out of GGUF files encode and decode as SentencePiece does."""

from __future__ import annotations

import io
import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from gguf_models import tiny_gguf
from gguf_tokenizers import TEXTS, tokenizer_of

from mlx_redrafter.gguf import read_gguf
from mlx_redrafter.gguf.pieces import merges_by_score
from mlx_redrafter.gguf.vocabulary import Vocabulary, read_vocabulary, special_ids

CORPUS = """The sea was calm and the boat lay still upon the water.
In the morning the fishermen went out, and in the evening they came back.
A house stands by the shore; its windows look out to sea. 1234 5678
"""


def trained(pieces: int, prefix: bool = True, defined: tuple[str, ...] = ()) -> Any:
    sentencepiece = pytest.importorskip("sentencepiece")
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.splitlines() * 3),
        model_writer=written,
        vocab_size=pieces,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        user_defined_symbols=["<sep>", *defined],
        control_symbols=["<end_of_turn>"],
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())


@pytest.fixture(scope="module")
def sentencepiece_model() -> Any:
    return trained(360)


def types_of(model: Any) -> list[int]:
    """GGUF's types of a model's pieces, which say nothing of those that users defined."""
    kinds = {"is_unknown": 2, "is_control": 3, "is_unused": 5, "is_byte": 6}
    return [
        next((kind for test, kind in kinds.items() if getattr(model, test)(i)), 1)
        for i in range(model.get_piece_size())
    ]


def sentencepiece_gguf(path: Path, model: Any, **changes: Any) -> Path:
    count = model.get_piece_size()
    types = types_of(model)
    pieces = [model.id_to_piece(i) for i in range(count)]
    types[pieces.index("<sep>")] = 4
    values = {
        "tokenizer__ggml__model": "llama",
        "tokenizer__ggml__pre": "default",
        "tokenizer__ggml__tokens": pieces,
        "tokenizer__ggml__scores": [float(model.get_score(i)) for i in range(count)],
        "tokenizer__ggml__token_type": types,
        "tokenizer__ggml__merges": None,
        "tokenizer__ggml__padding_token_id": None,
        "tokenizer__ggml__unknown_token_id": model.unk_id(),
        **changes,
    }
    return tiny_gguf(path, "llama", "F32", **values)


@pytest.mark.parametrize("text", [*TEXTS, *CORPUS.splitlines(), "the<sep>water", "zebra quiz"])
def test_sentencepiece_encodes_as_sentencepiece(
    tmp_path: Path, sentencepiece_model: Any, text: str
) -> None:
    tokenizer = tokenizer_of(sentencepiece_gguf(tmp_path / "t.gguf", sentencepiece_model))
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids == sentencepiece_model.encode(text)
    assert tokenizer.decode(ids) == text


def test_sentencepiece_without_a_space_before(tmp_path: Path, sentencepiece_model: Any) -> None:
    file = sentencepiece_gguf(
        tmp_path / "t.gguf", sentencepiece_model, tokenizer__ggml__add_space_prefix=False
    )
    tokenizer = tokenizer_of(file)
    for text in CORPUS.splitlines():
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
        assert ids != sentencepiece_model.encode(text)


def test_turns_end_although_the_file_does_not_say_it(
    tmp_path: Path, sentencepiece_model: Any
) -> None:
    model = read_gguf(sentencepiece_gguf(tmp_path / "t.gguf", sentencepiece_model))
    end = sentencepiece_model.piece_to_id("<end_of_turn>")
    assert end in special_ids(read_vocabulary(model))["eos_token_id"]


DEFINED = ("\n\n", "▁▁", "▁▁▁", "▁▁▁▁")
LETTERS = [*"the sea watr\n  <>1234éü🎉你\t'", "  ", "    ", "water", "\n\n", " house", "<sep>"]


@pytest.fixture(scope="module", params=[True, False], ids=["space before", "none"])
def with_defined_pieces(request: pytest.FixtureRequest) -> tuple[bool, Any]:
    return request.param, trained(400, request.param, DEFINED)


@pytest.mark.parametrize("stored", ["raw", "signs", "normal"])
def test_pieces_that_users_defined_are_matched_as_by_sentencepiece(
    tmp_path: Path, with_defined_pieces: tuple[bool, Any], stored: str
) -> None:
    """As converters store them: with spaces, with SentencePiece's sign, or as any other piece."""
    prefix, model = with_defined_pieces
    types, pieces = types_of(model), [model.id_to_piece(i) for i in range(model.get_piece_size())]
    for piece in DEFINED:
        i = model.piece_to_id(piece)
        types[i] = 1 if stored == "normal" else 4
        pieces[i] = piece.replace("▁", " ") if stored == "raw" else piece
    types[pieces.index("<sep>")] = 4
    file = sentencepiece_gguf(
        tmp_path / "t.gguf",
        model,
        tokenizer__ggml__token_type=types,
        tokenizer__ggml__tokens=pieces,
        tokenizer__ggml__add_space_prefix=prefix,
    )
    tokenizer = tokenizer_of(file)
    draw = random.Random(0)
    for _ in range(400):
        text = "".join(draw.choice(LETTERS) for _ in range(draw.randint(0, 14)))
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
        if text not in ("<sep>", "\n\n"):  # alone, they are left without the space before
            assert ids == model.encode(text), text


def leftmost(text: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece's merges, slowly: the best union of two neighbours, the leftmost of those."""
    parts = list(text)
    while True:
        unions = [a + b for a, b in itertools.pairwise(parts)]
        known = [i for i, union in enumerate(unions) if union in scores]
        if not known:
            return parts
        at = max(known, key=lambda i: (scores[unions[i]], -i))
        parts[at : at + 2] = [unions[at]]


@pytest.mark.parametrize("runs", [(2, 3, 4), (2, 4), (2, 3, 5, 8), (3,)])
def test_of_equal_runs_the_leftmost_grows(tmp_path: Path, runs: tuple[int, ...]) -> None:
    scores = {"▁h": -1.0, "hh": -2.0} | {"▁" * run: 0.0 for run in runs}
    pieces = ["<unk>", *scores, "▁", "h"]
    file = tiny_gguf(
        tmp_path / "t.gguf",
        tokenizer__ggml__model="llama",
        tokenizer__ggml__tokens=pieces,
        tokenizer__ggml__scores=[0.0, *scores.values(), -9.0, -9.0],
        tokenizer__ggml__token_type=[2] + [1] * (len(pieces) - 1),
        tokenizer__ggml__add_space_prefix=False,
        **{f"tokenizer.ggml.{kind}_token_id": None for kind in ("bos", "eos", "padding")},
    )
    tokenizer = tokenizer_of(file)
    draw = random.Random(1)
    for _ in range(200):
        text = "".join(draw.choice("   h") for _ in range(draw.randint(1, 24)))
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert [pieces[i] for i in ids] == leftmost(text.replace(" ", "▁"), scores)


def test_pieces_of_letters_that_are_bytes_are_matched_whole_only_before_all_merges() -> None:
    tokens, scores = ["a", "b", "ab", "\n\n", "\t\t"], [-9.0, -9.0, -1.0, -1.0, -5.0]
    vocabulary = Vocabulary("llama", tokens, [1] * 5, {}, [], False)
    assert merges_by_score(vocabulary, scores) == ([("a", "b")], ["\n\n"])
