"""Run by mlx.launch: texts of a bundle, one a line as JSON, from rank 0.

rank_texts.py BUNDLE [PIPELINE]
"""

import json
import sys
import time

from mlx_redrafter import generate, load

model, tokenizer = load(sys.argv[1], pipeline=len(sys.argv) > 2)
ranks = model.ranks
for temperature in (0.0, 0.9):
    for draft in (False, True):
        text = generate(
            model, tokenizer, "the quick brown", max_tokens=30, temperature=temperature, seed=3,
            draft=draft,
        )  # fmt: skip
        if ranks is None or ranks.leads:
            print(json.dumps(text), flush=True)
own = generate(model, tokenizer, "the quick", max_tokens=20, temperature=1.0)
print(f"own {json.dumps(own)}", flush=True)
time.sleep(0.5)  # what launches reads on until then
