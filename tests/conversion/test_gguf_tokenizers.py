"""Tokenizers out of GGUF files encode and decode as the originals do."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import mlx_lm
import pytest
from gguf_models import MERGES, SPECIAL, TOKENS, tiny_gguf
from mlx_lm.tokenizer_utils import load as load_tokenizer

from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.gguf import read_gguf
from mlx_redrafter.gguf.families import FAMILIES
from mlx_redrafter.gguf.pretokenizers import PRE_TOKENIZERS
from mlx_redrafter.gguf.tokenizer import read_vocabulary, write_tokenizer

TEXTS = [
    "the 123 thin theTHE then's they'LL I'D",
    "  two spaces,   three\n\nlines\r\n\ttab  ",
    "Grüße, 你好, e\u0301 und é; 🎉👩‍👩‍👧 नमस्ते",
    "f(x)=x**2;// 3.14159 12345 1e-9 ١٢٣",
    "",
    " ",
    "a\u00a0b\u2009c",
]


def tokenizer_of(file: Path) -> Any:
    out = file.parent / f"{file.stem}-tokenizer"
    out.mkdir()
    model = read_gguf(file)
    write_tokenizer(model, read_vocabulary(model), out, 128)
    return load_tokenizer(out)


def split(name: str, text: str) -> list[str]:
    """The pieces that a kind of pre-tokenizer makes of a text."""
    from tokenizers import Regex, pre_tokenizers

    how = PRE_TOKENIZERS[name]
    steps = [pre_tokenizers.Digits(individual_digits=True)] if how.digits else []
    steps.append(pre_tokenizers.Split(Regex(how.pattern), "isolated"))
    return [piece for piece, _ in pre_tokenizers.Sequence(steps).pre_tokenize_str(text)]


def own_split(tokenizer: Any, text: str) -> list[tuple[int, int]]:
    return [where for _, where in tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize("text", TEXTS)
def test_gpt2_splits_as_byte_level_bpe_does_by_itself(text: str) -> None:
    from tokenizers import pre_tokenizers

    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    for name, steps in (
        ("gpt-2", [level]),
        ("smollm", [pre_tokenizers.Digits(individual_digits=True), level]),
    ):
        expected = [text[a:b] for a, b in own_split(pre_tokenizers.Sequence(steps), text)]
        assert split(name, text) == expected


@pytest.mark.parametrize("text", TEXTS)
def test_qwen_and_llama_split_as_transformers_has_them(text: str) -> None:
    pytest.importorskip("transformers")
    from tokenizers import pre_tokenizers
    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import TikTokenConverter

    qwen = Qwen2Tokenizer(vocab={t: i for i, t in enumerate(TOKENS)}, merges=[])
    expected = [text[a:b] for a, b in own_split(qwen.backend_tokenizer.pre_tokenizer, text)]
    assert split("qwen2", text) == expected
    pattern = TikTokenConverter(vocab_file="none").pattern
    from tokenizers import Regex

    llama = pre_tokenizers.Split(Regex(pattern), "isolated")
    assert split("llama-bpe", text) == [text[a:b] for a, b in own_split(llama, text)]


def test_seed_splits_ends_of_lines_from_punctuation() -> None:
    text = "f(x1);\r\n\n  y = 23"
    expected = ["f", "(x", "1", ");", "\r\n\n", " ", " y", " =", " ", "2", "3"]
    assert split("seed-coder", text) == expected
    expected[3:5] = [");\r\n\n"]
    assert split("qwen2", text) == expected


def test_every_family_has_a_tokenizer_of_its_own_models() -> None:
    """By the names that llama.cpp's converter gives them; those of Gemma are SentencePiece's."""
    names = {
        "command-r": ["command-r"], "granite": ["refact", "dbrx"], "llama": ["llama-bpe", "tekken"],
        "olmo2": ["dbrx"], "phi3": ["dbrx", "gpt-4o"], "qwen2": ["qwen2"], "qwen2moe": ["qwen2"],
        "qwen3": ["qwen2"], "qwen3moe": ["qwen2"], "seed_oss": ["seed-coder"],
        "smollm3": ["smaug-bpe", "llama-bpe"], "stablelm": ["stablelm2"],
        "starcoder2": ["starcoder"], "gemma": [], "gemma2": [], "gemma3": [],
    }  # fmt: skip
    assert names.keys() == FAMILIES.keys()
    assert {name for some in names.values() for name in some} <= PRE_TOKENIZERS.keys()


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_every_kind_gives_every_text_back(tmp_path: Path, name: str) -> None:
    import unicodedata

    file = tiny_gguf(tmp_path / "t.gguf", "qwen2", "F32", tokenizer__ggml__pre=name)
    tokenizer = tokenizer_of(file)
    for text in TEXTS:
        wanted = unicodedata.normalize("NFC", text) if PRE_TOKENIZERS[name].nfc else text
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == wanted


def test_merges_and_special_tokens(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tiny_gguf(tmp_path / "t.gguf"))
    ids = tokenizer.encode("the<|im_end|> then", add_special_tokens=False)
    assert MERGES[:3] == ["t h", "th e", "Ġ t"]  # so "the" is made before "Ġt"
    assert [TOKENS[i] for i in ids] == ["the", "<|im_end|>", "Ġ", "the", "n"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the then"


def test_beginning_of_text_is_added_where_the_file_says_so(tmp_path: Path) -> None:
    for number, flag in enumerate((True, False)):
        file = tiny_gguf(tmp_path / f"{number}.gguf", tokenizer__ggml__add_bos_token=flag)
        ids = tokenizer_of(file).encode("the")
        assert (ids[0] == SPECIAL.index("<|im_start|>")) is flag


@pytest.mark.parametrize("text", ["<s:0>", "<begin of text>", "$A", "::"])
def test_any_text_may_begin_texts(text: str, tmp_path: Path) -> None:
    tokens = [text if token == "<|im_start|>" else token for token in TOKENS]
    changes = {"tokenizer__ggml__add_bos_token": True, "tokenizer__ggml__tokens": tokens}
    tokenizer = tokenizer_of(tiny_gguf(tmp_path / "t.gguf", **changes))
    ids = tokenizer.encode("the")
    assert [tokens[i] for i in ids] == [text, "the"]
    assert tokenizer.bos_token_id == ids[0]


CORPUS = """The sea was calm and the boat lay still upon the water.
In the morning the fishermen went out, and in the evening they came back.
A house stands by the shore; its windows look out to sea. 1234 5678
"""


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    sentencepiece = pytest.importorskip("sentencepiece")
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.splitlines() * 3),
        model_writer=written,
        vocab_size=360,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["<sep>"],
        control_symbols=["<end_of_turn>"],
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())


def sentencepiece_gguf(path: Path, model: Any, **changes: Any) -> Path:
    count = model.get_piece_size()
    kinds = {"is_unknown": 2, "is_control": 3, "is_unused": 5, "is_byte": 6}
    types = [
        next((kind for test, kind in kinds.items() if getattr(model, test)(i)), 1)
        for i in range(count)
    ]
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
    if "<sep>" in text:
        # SentencePiece puts its sign for a space only before the text, the others before each part.
        assert sentencepiece_model.piece_to_id("<sep>") in ids
    else:
        assert ids == sentencepiece_model.encode(text)
    assert tokenizer.decode(ids).replace(" <sep> ", "<sep>") in (
        text,
        text.replace("<sep>", "<sep> "),
    )


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
    from mlx_redrafter.gguf.tokenizer import special_ids

    model = read_gguf(sentencepiece_gguf(tmp_path / "t.gguf", sentencepiece_model))
    end = sentencepiece_model.piece_to_id("<end_of_turn>")
    assert end in special_ids(read_vocabulary(model))["eos_token_id"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tokenizer__ggml__pre": "no-such"}, "no-such"),
        ({"tokenizer__ggml__model": "rwkv"}, "rwkv"),
        ({"tokenizer__ggml__tokens": None}, "tokenizer.ggml.tokens"),
        ({"tokenizer__ggml__merges": ["t h", "three of them"]}, "three of them"),
        ({"tokenizer__ggml__merges": ["t nonsense"]}, "make no tokenizer"),
        ({"tokenizer__ggml__eos_token_id": 9999}, "9999"),
        ({"tokenizer__ggml__token_type": [1, 2]}, "token_type"),
    ],
)
def test_tokenizers_that_make_no_sense(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(RedrafterError, match=told) as caught:
        tokenizer_of(tiny_gguf(tmp_path / "t.gguf", **changes))
    assert "t.gguf" in str(caught.value)


def test_whole_models_have_their_tokenizer(tmp_path: Path) -> None:
    from mlx_redrafter.gguf import write_model
    from mlx_redrafter.text.places import silent

    out = tmp_path / "out"
    out.mkdir()
    write_model(read_gguf(tiny_gguf(tmp_path / "t.gguf")), out, silent)
    assert mlx_lm.load(str(out))[1].encode("the") == [TOKENS.index("the")]
