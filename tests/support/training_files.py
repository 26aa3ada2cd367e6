"""Data files and settings of tiny training runs."""

from __future__ import annotations

import json
from pathlib import Path

from bundles import PROSE

TINY = {
    "steps": 8, "unroll": 2, "positions_per_step": 16, "top_k": 8, "exit_dim": 32,
    "num_draft_layers": 1, "held_out": 2, "eval_prompts": 2, "eval_max_tokens": 6, "eval_every": 4,
    "beam_width": 2, "beam_length": 2, "save_every": 2, "report_every": 1, "max_seq_length": 64,
}  # fmt: skip


def chats(count: int = 6) -> list[dict]:
    words = " ".join(PROSE).split()
    return [
        {
            "messages": [
                {"role": "user", "content": " ".join(words[i : i + 3])},
                {"role": "assistant", "content": " ".join(words[i + 3 : i + 12])},
            ]
        }
        for i in range(count)
    ]


def write(path: Path, records: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records), "utf-8")
    return path


def weights(directory: Path) -> bytes:
    return (directory / "model.safetensors").read_bytes()
