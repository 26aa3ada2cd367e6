"""Tokenizers out of GGUF files encode and decode as the originals do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx_lm
import pytest
from gguf_models import MERGES, SPECIAL, TOKENS, tiny_gguf
from gguf_tokenizers import TEXTS, tokenizer_of

from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.gguf import read_gguf
from mlx_redrafter.gguf.families import FAMILIES
from mlx_redrafter.gguf.pretokenizers import PRE_TOKENIZERS


def split(name: str, text: str) -> list[str]:
    """The pieces that a kind of pre-tokenizer makes of a text."""
    from tokenizers import Regex, pre_tokenizers

    patterns = PRE_TOKENIZERS[name].patterns
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
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
    from transformers import Qwen2Tokenizer, Qwen3_5Tokenizer
    from transformers.convert_slow_tokenizer import TikTokenConverter

    for name, kind in (("qwen2", Qwen2Tokenizer), ("qwen35", Qwen3_5Tokenizer)):
        qwen = kind(vocab={t: i for i, t in enumerate(TOKENS)}, merges=[]).backend_tokenizer
        expected = [text[a:b] for a, b in own_split(qwen.pre_tokenizer, text)]
        assert split(name, text) == expected
        assert str(qwen.normalizer) == "NFC()"
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


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("qwen35", "न\u092e\u094d x", ["न\u092e\u094d", " x"]),
        ("minicpm5", "a  12345", ["a", "  ", "123", "45"]),
        ("llama-bpe", "a  12345", ["a", " ", " ", "123", "45"]),
        ("superbpe", "in 1234567, or 12", ["in ", "1", "234", "567", ", or ", "12"]),
        ("viking", "Hei, du (42)", ["Hei", ",", " du", " (", "4", "2", ")"]),
        ("deepseek-coder", "a b\n(x) 12世界", [
            "a", " b", "\n", "(", "x", ")", " ", "1", "2", "世界",
        ]),
        ("falcon-h1", "x 1234", ["x", " ", "123", "4"]),
        ("exaone4", "x 1234", ["x", " 1234"]),
    ],
)  # fmt: skip
def test_kinds_split_numbers_and_signs_as_their_models(
    name: str, text: str, expected: list[str]
) -> None:
    assert split(name, text) == expected


def test_every_family_has_a_tokenizer_of_its_own_models() -> None:
    """By the names that llama.cpp's converter gives them; those of Gemma are SentencePiece's."""
    names = {
        "command-r": ["command-r"], "granite": ["refact", "dbrx"],
        "llama": ["llama-bpe", "tekken", "deepseek-coder", "viking", "minicpm5"],
        "olmo2": ["dbrx", "superbpe"], "phi3": ["dbrx", "gpt-4o"],
        "qwen2": ["qwen2"], "qwen2moe": ["qwen2"],
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


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tokenizer__ggml__pre": "no-such"}, "no-such"),
        ({"tokenizer__ggml__model": "rwkv"}, "rwkv"),
        ({"tokenizer__ggml__tokens": None}, "tokenizer.ggml.tokens"),
        ({"tokenizer__ggml__merges": ["t h", "three of them"]}, "three of them"),
        ({"tokenizer__ggml__merges": ["t nonsense"]}, "make no tokenizer"),
        ({"tokenizer__ggml__eos_token_id": 9999}, "9999"),
        ({"tokenizer__ggml__padding_token_id": "none"}, "padding_token_id"),
        ({"tokenizer__ggml__token_type": [1, 2]}, "token_type"),
    ],
)
def test_tokenizers_that_make_no_sense(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(RedrafterError, match=told) as caught:
        tokenizer_of(tiny_gguf(tmp_path / "t.gguf", **changes))
    assert "t.gguf" in str(caught.value)


@pytest.mark.parametrize("key", ["padding", "unknown"])
def test_dispensable_tokens_outside_of_the_vocabulary_are_none(tmp_path: Path, key: str) -> None:
    changes: dict[str, Any] = {f"tokenizer__ggml__{key}_token_id": 0xFFFFFFFF}
    tokenizer = tokenizer_of(tiny_gguf(tmp_path / "t.gguf", **changes))
    assert getattr(tokenizer, {"padding": "pad_token", "unknown": "unk_token"}[key]) is None


def test_whole_models_have_their_tokenizer(tmp_path: Path) -> None:
    from mlx_redrafter.gguf import write_model
    from mlx_redrafter.text.places import silent

    out = tmp_path / "out"
    out.mkdir()
    write_model(read_gguf(tiny_gguf(tmp_path / "t.gguf")), out, silent)
    assert mlx_lm.load(str(out))[1].encode("the") == [TOKENS.index("the")]
