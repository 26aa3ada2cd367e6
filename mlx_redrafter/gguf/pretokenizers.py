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
MARKED = r"[\p{L}\p{M}]"  # letters with their marks
QWEN35 = (
    rf"{CONTRACTIONS}|{START}{MARKED}+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGIT, THREE_DIGITS = r"\p{N}", r"\p{N}{1,3}"
SIGNS = ".,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c"  # that end phrases, in several scripts
VIKING = rf" ?[^\s(|){SIGNS}]+"
# Lines, words, punctuation, scripts from Samaritan to Han and Hangul, digits.
DEEPSEEK_CODER = (
    r"[\r\n]",
    r"\s?\p{L}+",
    r"\s?\p{P}+",
    "[\u0800-\u9fa5\uac00-\ud7ff]+",
    DIGIT,
)


@dataclass(frozen=True)
class PreTokenizer:
    """A way of splitting.

    Attributes:
        patterns: What stays together; each splits the parts that those before it left.
        nfc: Whether text is composed (NFC) before.
        ignore_merges: Whether a piece that is a token of its own is taken whole.
        bos: Whether texts begin with the beginning-of-text token unless the file says otherwise.
    """

    patterns: tuple[str, ...]
    nfc: bool = False
    ignore_merges: bool = False
    bos: bool = False


_KINDS = {
    PreTokenizer((GPT2,)): (
        *("gpt-2", "gpt2", "mpt", "olmo", "phi-2", "jais", "trillion", "gigachat", "a.x-4.0"),
        *("mellum", "exaone4", "granite-docling"),
    ),
    PreTokenizer((DIGIT, GPT2)): (
        *("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
    ),
    PreTokenizer((LLAMA3,), ignore_merges=True, bos=True): (
        *("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0"),
        *("lfm2", "jina-v5-nano"),
    ),
    PreTokenizer((LLAMA3,)): ("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"),
    PreTokenizer((QWEN2,), nfc=True): ("qwen2", "deepseek-r1-qwen", "megrez"),
    PreTokenizer((QWEN2,)): ("stablelm2", "hunyuan", "solar-open", "kormo", "f2llmv2"),
    PreTokenizer((QWEN35,), nfc=True): ("qwen35",),
    PreTokenizer((SEED,)): ("seed-coder",),
    PreTokenizer((TEKKEN,), ignore_merges=True, bos=True): ("tekken",),
    PreTokenizer((GPT4O,)): ("gpt-4o", "llama4", "kanana2", "minimax-m2"),
    PreTokenizer((THREE_DIGITS, LLAMA3), ignore_merges=True): ("minicpm5",),
    PreTokenizer((r"\p{N}+", r"(?=(\d{3})+(?!\d))")): ("superbpe",),
    PreTokenizer((VIKING, DIGIT)): ("viking",),
    PreTokenizer(DEEPSEEK_CODER): ("deepseek-coder",),
}
PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    name: how for how, names in _KINDS.items() for name in names
}
