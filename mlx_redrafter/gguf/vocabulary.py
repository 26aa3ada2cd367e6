"""A GGUF file's vocabulary, checked against itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import RedrafterError
from .file import GGUFModel
from .pretokenizers import PRE_TOKENIZERS, PreTokenizer

# GGUF's token types.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "▁"  # SentencePiece's sign for it
# Decoding needs neither, and files name some outside of the vocabulary.
DISPENSABLE = ("padding", "unknown")
# Tokens that end a turn, whatever the file says of them; converters name only one of them.
END_OF_TURN = (
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|END_OF_TURN_TOKEN|>",
    "<EOT>",
    "_<EOT>",
    "<end_of_utterance>",
)


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, checked against each other.

    Attributes:
        kind: "gpt2" (byte-level BPE) or "llama" (SentencePiece's BPE).
        tokens: Texts.
        types: GGUF's token types.
        special: Ids of "bos", "eos", "unk" and "pad", where they are told.
        ends: Ids that end an answer, the file's own first.
        adds_bos: Whether texts begin with the beginning-of-text token.
    """

    kind: str
    tokens: list[str]
    types: list[int]
    special: dict[str, int]
    ends: list[int]
    adds_bos: bool


def read_vocabulary(model: GGUFModel) -> Vocabulary:
    """Read the tokens and what is special about them.

    Raises:
        RedrafterError: If there are none, or what is said of them makes no sense.
    """
    kind = model.text("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise RedrafterError(
            f"'{model.path}' has a tokenizer of the kind '{kind}', which cannot be converted from "
            "GGUF here (known: gpt2, llama): convert the model's original checkpoint."
        )
    tokens = strings(model, "tokenizer.ggml.tokens")
    types = model.metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    whole = isinstance(types, list) and all(isinstance(one, int) for one in types)
    if not whole or len(types) != len(tokens):
        raise model.refusal("tokenizer.ggml.token_type", types, "a list as long as the tokens")
    keys = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    special = {short: _id(model, long, len(tokens)) for short, long in keys.items()}
    if kind == "llama":
        tokens = _signed(tokens, types)
    named = [_id(model, key, len(tokens)) for key in ("eos", "eot", "eom")]
    texts = {token: i for i, token in enumerate(tokens)}
    if (twice := _repeated(tokens)) is not None:
        raise RedrafterError(
            f"'{model.path}' cannot be converted: two of its tokens have the text {twice[:40]!r}, "
            "so texts could not be told from each other; download it again."
        )
    known = [texts[t] for t in END_OF_TURN if t in texts]
    ends = [i for i in dict.fromkeys([*named, *known]) if i is not None]
    default = kind == "llama" or pre_tokenizer(model).bos
    return Vocabulary(
        kind,
        tokens,
        types,
        {k: i for k, i in special.items() if i is not None},
        ends,
        model.flag("tokenizer.ggml.add_bos_token", default),
    )


def _repeated(tokens: list[str]) -> str | None:
    """The first text that two tokens have, of which one could not be told; empty ones say none."""
    seen: set[str] = set()
    for token in tokens:
        if token in seen and token:
            return token
        seen.add(token)
    return None


def _signed(tokens: list[str], types: list[int]) -> list[str]:
    """SentencePiece's own spelling of what users defined, where converters wrote spaces."""
    known = set(tokens)
    spelled = [token.replace(" ", SPACE) for token in tokens]
    return [
        new if kind == USER_DEFINED and new not in known else old
        for old, new, kind in zip(tokens, spelled, types, strict=True)
    ]


def _id(model: GGUFModel, key: str, count: int) -> int | None:
    full = f"tokenizer.ggml.{key}_token_id"
    value = model.metadata.get(full)
    if value is None:
        return None
    number = isinstance(value, int) and not isinstance(value, bool)
    if number and key in DISPENSABLE and not 0 <= value < count:
        return None
    if not number or not 0 <= value < count:
        raise model.refusal(full, value, "the number of a token")
    return int(value)


def strings(model: GGUFModel, key: str) -> list[str]:
    """A list of strings of the metadata, which has to be there."""
    value = model.metadata.get(key)
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value) or not value:
        raise model.refusal(key, value, "a list of strings")
    return value


def pre_tokenizer(model: GGUFModel) -> PreTokenizer:
    """How a byte-level BPE splits text.

    Raises:
        RedrafterError: If it is not one of those known here.
    """
    name = model.text("tokenizer.ggml.pre", "missing")
    if name not in PRE_TOKENIZERS:
        raise RedrafterError(
            f"'{model.path}' splits text in a way that is not known here (tokenizer.ggml.pre is "
            f"'{name}'): convert the model's original checkpoint."
        )
    return PRE_TOKENIZERS[name]


def special_ids(vocabulary: Vocabulary) -> dict[str, Any]:
    """The ids that config.json and generation_config.json name."""
    found: dict[str, Any] = {
        f"{key}_token_id": vocabulary.special[key]
        for key in ("bos", "pad")
        if key in vocabulary.special
    }
    if vocabulary.ends:
        found["eos_token_id"] = vocabulary.ends if len(vocabulary.ends) > 1 else vocabulary.ends[0]
    return found
