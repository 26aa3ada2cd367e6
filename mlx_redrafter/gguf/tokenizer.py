"""A GGUF file's vocabulary as the tokenizer files that transformers and mlx-lm read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
from tokenizers import pre_tokenizers as splitting

from ..errors import RedrafterError
from ..system.files import write_json
from .file import GGUFModel
from .pieces import sentencepiece
from .vocabulary import (
    CONTROL,
    END_OF_TURN,
    UNKNOWN,
    USER_DEFINED,
    Vocabulary,
    pre_tokenizer,
    special_ids,
    strings,
)


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
    make = sentencepiece if vocabulary.kind == "llama" else _byte_level
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


def _byte_level(model: GGUFModel, vocabulary: Vocabulary) -> Tokenizer:
    how = pre_tokenizer(model)
    merges = []
    for merge in strings(model, "tokenizer.ggml.merges"):
        left, space, right = merge.partition(" ")
        if not space or " " in right:
            raise model.refusal("tokenizer.ggml.merges", merge, "pairs of tokens")
        merges.append((left, right))
    vocab = {token: i for i, token in enumerate(vocabulary.tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=how.ignore_merges))
    if how.nfc:
        tokenizer.normalizer = normalizers.NFC()
    steps: list[Any] = [splitting.Split(Regex(one), "isolated") for one in how.patterns]
    steps.append(splitting.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer.pre_tokenizer = splitting.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _add_special(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    added = []
    for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True):
        ends = kind != CONTROL and token in END_OF_TURN  # converters forget to mark some
        if kind == CONTROL or ends or (kind == UNKNOWN and vocabulary.kind == "llama"):
            added.append(AddedToken(token, special=True, normalized=False))
        elif kind == USER_DEFINED and token and vocabulary.kind == "gpt2":
            added.append(AddedToken(token, special=False, normalized=False))
    tokenizer.add_tokens(added)
    bos = vocabulary.special.get("bos")
    if vocabulary.adds_bos and bos is not None:
        # By a name of its own: in a template spaces and colons of the token's text mean something.
        tokenizer.post_processor = processors.TemplateProcessing(
            single="bos:0 $A:0",
            pair="bos:0 $A:0 bos:1 $B:1",
            special_tokens=[{"id": "bos", "ids": [bos], "tokens": [vocabulary.tokens[bos]]}],
        )
