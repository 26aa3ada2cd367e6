"""How byte-level BPE splits text before its merges, by the name that GGUF gives it.

The patterns are those of the models' own tokenizer.json files; GGUF stores only their name.
"""

from __future__ import annotations

from dataclasses import dataclass

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{CONTRACTIONS}|{LETTERS}|\p{{N}}{{1,3}}|{REST}"
QWEN2 = rf"{CONTRACTIONS}|{LETTERS}|\p{{N}}|{REST}"
# Other than above, punctuation does not take the ends of lines after it along.
SEED = rf"{CONTRACTIONS}|{LETTERS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
START = r"[^\r\n\p{L}\p{N}]?"
TEKKEN = rf"{START}{UPPER}*{LOWER}+|{START}{UPPER}+{LOWER}*|\p{{N}}|{SLASHED}"
GPT4O = (
    rf"{START}{UPPER}*{LOWER}+{CONTRACTIONS}?|{START}{UPPER}+{LOWER}*{CONTRACTIONS}?|"
    rf"\p{{N}}{{1,3}}|{SLASHED}"
)


@dataclass(frozen=True)
class PreTokenizer:
    """A way of splitting.

    Attributes:
        pattern: What stays together.
        digits: Whether every digit is split off first.
        nfc: Whether text is composed (NFC) before.
        ignore_merges: Whether a piece that is a token of its own is taken whole.
        bos: Whether texts begin with the beginning-of-text token unless the file says otherwise.
    """

    pattern: str
    digits: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    bos: bool = False


_GPT2 = PreTokenizer(GPT2)
_DIGITS = PreTokenizer(GPT2, digits=True)
_LLAMA3 = PreTokenizer(LLAMA3, ignore_merges=True, bos=True)
_QWEN2 = PreTokenizer(QWEN2, nfc=True)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    **dict.fromkeys(("gpt-2", "gpt2", "mpt", "olmo", "phi-2", "jais", "trillion"), _GPT2),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
        _DIGITS,
    ),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"), _LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), PreTokenizer(LLAMA3)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), _QWEN2),
    **dict.fromkeys(("stablelm2", "hunyuan", "solar-open"), PreTokenizer(QWEN2)),
    "seed-coder": PreTokenizer(SEED),
    "tekken": PreTokenizer(TEKKEN, ignore_merges=True, bos=True),
    **dict.fromkeys(("gpt-4o", "llama4"), PreTokenizer(GPT4O)),
}
