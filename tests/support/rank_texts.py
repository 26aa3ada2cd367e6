"""Run by mlx.launch, or alone: texts of bundles, as one JSON object from rank 0.

rank_texts.py BUNDLE... [--pipeline BUNDLE...]
"""

from __future__ import annotations

import json
import sys
import time
from itertools import product
from typing import Any

from mlx_redrafter import batch_generate, generate, load

PROMPT = "the quick brown"


def texts_of(path: str, *, pipeline: bool) -> dict[str, Any]:
    """Every way to write with a bundle: the token ids, or the texts."""
    model, tokenizer = load(path, pipeline=pipeline)
    made: dict[str, Any] = {}
    for temperature, ways in product((0.0, 0.9), WAYS):
        made[f"{ways} at {temperature}"] = generate(
            model, tokenizer, PROMPT, max_tokens=24, temperature=temperature, seed=3, **WAYS[ways]
        )
    made["batch"] = batch_generate(
        model, tokenizer, [PROMPT, "a drafter", "what does"], max_tokens=[20, 12, 16], seed=4,
        temperature=0.7,
    ).texts  # fmt: skip
    cache, turns = model.make_cache(), PROMPT
    for _ in range(2):  # the second resumes from the cache, but for what is rewound
        answer = generate(model, tokenizer, turns, max_tokens=12, cache=cache)
        turns += answer + " and"
        made.setdefault("turns", []).append(answer)
    return made


WAYS: dict[str, dict[str, Any]] = {
    "plain": {"draft": False},
    "chain": {"beam_width": 1, "beam_length": 4},
    "tree": {"beam_width": 4, "beam_length": 4, "node_budget": 10},
    "planned": {},
}


def main() -> None:
    """Print what was written, and this rank's own text without a seed."""
    at = sys.argv.index("--pipeline") if "--pipeline" in sys.argv else len(sys.argv)
    whole = {path: texts_of(path, pipeline=False) for path in sys.argv[1:at]}
    layers = {path: texts_of(path, pipeline=True) for path in sys.argv[at + 1 :]}
    model, tokenizer = load(
        sys.argv[1] if at > 1 else sys.argv[at + 1], plan=False, pipeline=at == 1
    )
    if model.ranks is None or model.ranks.leads:
        print(json.dumps({"texts": {**whole, **layers}}), flush=True)
    own = generate(model, tokenizer, PROMPT, max_tokens=20, temperature=1.0)
    print(json.dumps({"own": own}), flush=True)
    time.sleep(0.5)  # what launches reads on until then


if __name__ == "__main__":
    main()
