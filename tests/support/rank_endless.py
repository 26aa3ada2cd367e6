"""Run as each of several ranks: a text without an end.

rank_endless.py BUNDLE
"""

import sys

from mlx_redrafter import load, stream_generate

model, tokenizer = load(sys.argv[1], plan=False)
while True:
    for response in stream_generate(model, tokenizer, "the quick", max_tokens=50):
        print("token", response.token, flush=True)
