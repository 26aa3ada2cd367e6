"""Names of precisions; apart from what they stand for, since a command line's --help needs them."""

from __future__ import annotations

STORED = "stored"
DTYPES = ("float32", "bfloat16", "float16")
BITS = {"8bit": 8, "4bit": 4}
PRECISIONS = (STORED, *DTYPES, *BITS)
