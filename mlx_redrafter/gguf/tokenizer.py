"""A GGUF file's vocabulary as the tokenizer files that transformers and mlx-lm read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
from tokenizers import pre_tokenizers as splitting

from ..errors import RedrafterError
from ..system.files import write_json
from .file import GGUFModel
from .pretokenizers import PRE_TOKENIZERS, PreTokenizer

# GGUF's token types.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "▁"
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
LONGEST_PIECE = 1 << 12  # characters; merges of longer ones are not looked for


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
    tokens = _strings(model, "tokenizer.ggml.tokens")
    types = model.metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    whole = isinstance(types, list) and all(isinstance(one, int) for one in types)
    if not whole or len(types) != len(tokens):
        raise model.refusal("tokenizer.ggml.token_type", types, "a list as long as the tokens")
    keys = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    special = {short: _id(model, long, len(tokens)) for short, long in keys.items()}
    named = [_id(model, key, len(tokens)) for key in ("eos", "eot", "eom")]
    texts = {token: i for i, token in enumerate(tokens)}
    if (twice := _repeated(tokens)) is not None:
        raise RedrafterError(
            f"'{model.path}' cannot be converted: two of its tokens have the text {twice[:40]!r}, "
            "so texts could not be told from each other; download it again."
        )
    known = [texts[t] for t in END_OF_TURN if t in texts]
    ends = [i for i in dict.fromkeys([*named, *known]) if i is not None]
    default = kind == "llama" or _pre_tokenizer(model).bos
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


def _id(model: GGUFModel, key: str, count: int) -> int | None:
    full = f"tokenizer.ggml.{key}_token_id"
    value = model.metadata.get(full)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
        raise model.refusal(full, value, "the number of a token")
    return value


def _strings(model: GGUFModel, key: str) -> list[str]:
    value = model.metadata.get(key)
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value) or not value:
        raise model.refusal(key, value, "a list of strings")
    return value


def _pre_tokenizer(model: GGUFModel) -> PreTokenizer:
    name = model.text("tokenizer.ggml.pre", "missing")
    if name not in PRE_TOKENIZERS:
        raise RedrafterError(
            f"'{model.path}' splits text in a way that is not known here (tokenizer.ggml.pre is "
            f"'{name}'): convert the model's original checkpoint."
        )
    return PRE_TOKENIZERS[name]


def write_tokenizer(model: GGUFModel, vocabulary: Vocabulary, directory: Path, length: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and generation_config.json.

    Args:
        model: The file.
        vocabulary: Its tokens.
        directory: Existing directory.
        length: Tokens of context.

    Raises:
        RedrafterError: If the vocabulary does not make a tokenizer.
    """
    make = _sentencepiece if vocabulary.kind == "llama" else _byte_level
    try:
        tokenizer = make(model, vocabulary)
        _add_special(tokenizer, vocabulary)
        tokenizer.save(str(directory / "tokenizer.json"))
    except RedrafterError:
        raise
    except Exception as error:  # tokenizers raises plain Exceptions
        reason = " ".join(str(error).split())[:200]
        raise RedrafterError(
            f"'{model.path}' cannot be converted: its tokens make no tokenizer ({reason})."
        ) from None
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": length,
    }
    config |= {f"{k}_token": vocabulary.tokens[i] for k, i in vocabulary.special.items()}
    if "tokenizer.chat_template" in model.metadata:
        config["chat_template"] = model.text("tokenizer.chat_template")
    write_json(directory / "tokenizer_config.json", config)
    write_json(directory / "generation_config.json", special_ids(vocabulary))


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


def _byte_level(model: GGUFModel, vocabulary: Vocabulary) -> Tokenizer:
    how = _pre_tokenizer(model)
    merges = []
    for merge in _strings(model, "tokenizer.ggml.merges"):
        left, space, right = merge.partition(" ")
        if not space or " " in right:
            raise model.refusal("tokenizer.ggml.merges", merge, "pairs of tokens")
        merges.append((left, right))
    vocab = {token: i for i, token in enumerate(vocabulary.tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=how.ignore_merges))
    if how.nfc:
        tokenizer.normalizer = normalizers.NFC()
    steps: list[Any] = [splitting.Digits(individual_digits=True)] if how.digits else []
    steps.append(splitting.Split(Regex(how.pattern), "isolated"))
    steps.append(splitting.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer.pre_tokenizer = splitting.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(model: GGUFModel, vocabulary: Vocabulary) -> Tokenizer:
    scores = model.metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(vocabulary.tokens):
        raise model.refusal("tokenizer.ggml.scores", scores, "a list as long as the tokens")
    vocab = {token: i for i, token in enumerate(vocabulary.tokens)}
    unknown = vocabulary.special.get("unk")
    if unknown is None and UNKNOWN in vocabulary.types:
        unknown = vocabulary.types.index(UNKNOWN)
    bpe = models.BPE(
        vocab,
        merges_by_score(vocabulary, scores),
        unk_token=None if unknown is None else vocabulary.tokens[unknown],
        fuse_unk=True,
        byte_fallback=BYTE in vocabulary.types,
    )
    tokenizer = Tokenizer(bpe)
    spaces = normalizers.Replace(" ", SPACE)
    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.flag("tokenizer.ggml.add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = spaces
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def merges_by_score(vocabulary: Vocabulary, scores: list[float]) -> list[tuple[str, str]]:
    """The merges of SentencePiece's BPE, which stores only pieces and scores.

    It always merges the two neighbours whose union has the highest score, the leftmost first. So
    every way to split a piece in two pieces is a merge, ranked by the whole's score.
    """
    ids = {
        token: i
        for i, token in enumerate(vocabulary.tokens)
        if vocabulary.types[i] in (NORMAL, USER_DEFINED, UNUSED)
    }
    found: list[tuple[float, int, int, tuple[str, str]]] = []
    for piece, i in ids.items():
        if vocabulary.types[i] != NORMAL or len(piece) > LONGEST_PIECE:
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ids and right in ids:
                found.append((-scores[i], i, cut, (left, right)))
    found.sort()
    return [pair for *_, pair in found]


def _add_special(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    added = []
    for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True):
        ends = kind != CONTROL and token in END_OF_TURN  # converters forget to mark some
        if kind == CONTROL or ends or (kind == UNKNOWN and vocabulary.kind == "llama"):
            added.append(AddedToken(token, special=True, normalized=False))
        elif kind == USER_DEFINED and token:
            # Such pieces are matched as SentencePiece sees text, with its sign for spaces.
            spaced = SPACE in token and vocabulary.kind == "llama"
            added.append(AddedToken(token, special=False, normalized=spaced))
    tokenizer.add_tokens(added)
    bos = vocabulary.special.get("bos")
    if vocabulary.adds_bos and bos is not None:
        # By a name of its own: in a template spaces and colons of the token's text mean something.
        tokenizer.post_processor = processors.TemplateProcessing(
            single="bos:0 $A:0",
            pair="bos:0 $A:0 bos:1 $B:1",
            special_tokens=[{"id": "bos", "ids": [bos], "tokens": [vocabulary.tokens[bos]]}],
        )
