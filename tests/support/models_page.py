"""How each of mlx-lm's architectures verifies drafts: the page docs/models.md.

    python -m pytest tests/target/test_models_page.py --write-pages     write it

A tiny random model of each architecture is made and asked; the prose around the table is here too.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import architectures
import mlx_lm
from mlx_lm.models.cache import ArraysCache, ChunkedKVCache, RotatingKVCache, make_prompt_cache

from mlx_redrafter.cache.kept_points import KEPT_PIECES, KEPT_PROMPTS
from mlx_redrafter.cache.recurrent import HELD_BYTES
from mlx_redrafter.target.architectures import REFUSED, UNBATCHED
from mlx_redrafter.target.target import Target

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "models.md"

# Modules of mlx-lm's that hold no architecture.
HELPERS = {
    "__init__", "activations", "base", "bitlinear_layers", "cache", "gated_delta", "mla",
    "pipeline", "rope_utils", "ssm", "switch_layers",
}  # fmt: skip
# Those that cannot be made here, and why. Nothing is claimed of them.
UNTRIED = {
    "muse_spark": "would be a tree; mlx-lm has only Metal kernels for it",
    "olmo": "asks for the package ai2-olmo, and fails in mlx-lm: it adds a mask's name to scores",
}
# Tried in a way that the reader should know of.
REMARKS = {"bitnet": "its Metal kernel written out in mlx operations for the test"}
# What recurrent state is, by the modules that keep it.
STATES = {
    "state space": "falcon_h1 granitemoehybrid jamba mamba mamba2 nemotron_h plamo2",
    "gated delta net": "olmo_hybrid prism_hadamard_qwen35 qwen3_5 qwen3_5_moe qwen3_next",
    "delta attention": "bailing_moe_v3 kimi_k3 kimi_linear",
    "linear attention": "bailing_hybrid bailing_moe_linear",
    "gated linear recurrence": "recurrent_gemma",
    "time mix (RWKV)": "rwkv7",
    "short convolution": "gear lfm2 lfm2-vl lfm2_moe",
    "short convolution of keys and values": "baichuan_m1",
    "n-gram history": "longcat_flash_ngram",
    "open group of keys that are compressed together": "deepseek_v41",
}
HOW = {
    "tree": "tree",
    "chain": "chain",
    "nothing": "not drafted",
}

INTRODUCTION = """\
# Models

Which of mlx-lm's architectures verify drafts, and how. This page is written by
`python -m pytest tests/target/test_models_page.py --write-pages`; without the flag that test
compares the two.

- **tree**: the target checks a whole tree of candidates in one forward. Layers with keys and values
  (full, windowed, chunked or block-sparse attention, attention sinks, shared and latent keys and
  values) see each node once: masks and positions reach it. Layers with recurrent state (state
  spaces, gated delta nets, short convolutions, RWKV, n-gram histories) see the tree's root-to-leaf
  paths, each as a sequence of its own; see [below](#what-a-tree-costs-where-state-recurs).
- **chain**: the likeliest path only. The drafter's beam search is as wide as asked for, but only
  its best beam is verified; the planner therefore keeps to width 1.
- **not drafted**: loading it with a drafter is refused with the reason; without one it decodes
  plainly.

An architecture that is not listed, and a model file of your own, is verified as a chain if its
caches are of kinds known here: the rows of a chain are an ordinary piece of text, so nothing more
is asked of a model than that it is causal. Otherwise it is refused in one sentence that names the
layer. Vision-language models run as text.

[Batches](batches.md) of prompts can be decoded with every tree architecture but these, where what a
row looks at is chosen, or compressed in groups, by the positions of one text: {unbatched}.
"""

COST = """\
## What a tree costs where state recurs

A recurrence after a node depends on that node's own ancestors, so the modules that carry state are
run over a batch of paths: the tree's root-to-leaf paths are gathered, the state before the tree is
repeated for each, and each node takes its result from one of the rows that it has. Only the
recurrence itself (convolution, scan) sees leaves x depth rows; the matrix products of these
modules, which read their weights, are made once for each node, and so are attention and
feed-forward.

After acceptance the state of the accepted path is the state of its row, where that path was one of
the tree's longest and the paths' states are small enough to be held ({held} MiB a layer); a chain
that is accepted whole leaves its state at no cost at all. Otherwise the state before the tree comes
back and the recurrence alone runs again over the accepted rows, with the products that were made
for the tree: no weights are read. Either is part of the next step's graph, so a step remains one
evaluation. [Figures](performance.md#trees-where-state-recurs) of both were measured on a CPU.

"""

CACHES = """\
## Caches

- `kv_bits`, `kv_group_size` and `quantized_kv_start` mean what they mean in mlx-lm, with drafting
  as without. Where `quantized_kv_start` falls inside a draft, tokens are verified one by one up to
  it. Models with sliding windows, attention sinks, latent keys and values, or attention that mlx-lm
  does not compute on quantised keys are refused, as mlx-lm fails on them too.
- `max_kv_size` is for plain decoding: such a cache overwrites rows that a rejected draft would have
  to give back. Models that make their own caches ignore it, as in mlx-lm, and so does a call that
  is given a `cache`: it stays as it is. `model.target.make_cache(max_kv_size)` bounds a new one
  (mlx-lm's `make_prompt_cache` asks `model.make_cache()`, which bounds none).
  Once it is full the text depends on the pieces in which it is read, as in mlx-lm: tokens that are
  run together see the latest rows, a token by itself the first four as well. So a conversation on
  such a cache is what mlx-lm's own gives when it is fed the same pieces, and not always what the
  whole prompt gives on a new one; and a full one that has to go back reads the prompt again.
- A cache belongs to a model object of the process: `copy()` and `copy.deepcopy` copy it, and it is
  not pickled. `save(path)` writes it to a file, and `model.load_cache(path)` reads that
  ([how](caches.md)).
- After an edited history, or back in an earlier turn, attention goes on from the first difference
  (a window from wherever it still has its rows, up to 256 tokens back). Recurrent state goes on
  from the end of one of the last {prompts} prompts, or from one of up to {pieces} places between
  the pieces in which long ones were run, and so do the windows of such models; where there is none
  before the difference, the prompt is prefilled again. Each such point costs a copy of the state.
"""


def modules() -> list[str]:
    """All of mlx-lm's architecture modules."""
    folder = Path(mlx_lm.__file__).parent / "models"
    return sorted({path.stem for path in folder.glob("*.py")} - HELPERS, key=str.lower)


def state_of(name: str) -> str:
    """What the recurrent state of a chain's module is."""
    kinds = (kind for kind, names in STATES.items() if name in names.split())
    return next(kinds, "recurrent state")


def describe(name: str, target: Target) -> str:
    """What its layers keep."""
    counts: Counter[str] = Counter()
    for layer in make_prompt_cache(target.model):
        for part in getattr(layer, "caches", (layer,)):
            if isinstance(part, ArraysCache) or type(part).__name__ == "LayerCache":
                counts[state_of(name)] += 1
            elif isinstance(part, RotatingKVCache):
                counts["windows"] += 1
            elif isinstance(part, ChunkedKVCache):
                counts["chunks"] += 1
            else:
                counts["keys and values"] += 1
    return ", ".join(sorted(counts))


def rows() -> list[tuple[str, str, str]]:
    """(module, how it is verified, remark) for every module."""
    result = []
    for name in modules():
        if name in UNTRIED or name not in architectures.CONFIGS:
            result.append((name, "not tried", UNTRIED.get(name, "no configuration here")))
            continue
        target = Target(architectures.build(name))
        remark = REFUSED.get(name) or describe(name, target)
        remark += f"; {REMARKS[name]}" if name in REMARKS else ""
        result.append((name, HOW[target.verifies], remark))
    return result


def render() -> str:
    """The page."""
    table = rows()
    counts = Counter(how for _, how, _ in table)
    lines = [
        INTRODUCTION.format(unbatched=", ".join(sorted(UNBATCHED))),
        f"## mlx-lm {mlx_lm.__version__}",
        "",
        ", ".join(f"{count} {how}" for how, count in counts.most_common()) + ". They are",
        "tested: greedy text in float32 is the same drafted, plain and from mlx-lm.",
        "",
        "| mlx-lm module | drafts are verified as | its layers keep |",
        "|---|---|---|",
        *(f"| {name} | {how} | {remark} |" for name, how, remark in table),
        "",
        COST.format(held=HELD_BYTES >> 20),
        CACHES.format(prompts=KEPT_PROMPTS, pieces=KEPT_PIECES),
    ]
    return "\n".join(lines)
