"""Tokenizers of GGUF files, as tests load them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlx_lm.tokenizer_utils import load as load_tokenizer

from mlx_redrafter.gguf import read_gguf
from mlx_redrafter.gguf.tokenizer import write_tokenizer
from mlx_redrafter.gguf.vocabulary import read_vocabulary

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
