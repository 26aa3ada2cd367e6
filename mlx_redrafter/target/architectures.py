"""Which of mlx-lm's architectures verify drafts as trees, which as chains, and which not at all.

An architecture is named as its module in ``mlx_lm.models``. What is not in these tables is verified
as a chain, which needs nothing of a model but that it is causal and that its caches are known: the
rows of a chain are an ordinary piece of text. ``TREES`` are those whose masks and positions the
seams reach in full, as the tests show for each.
"""

from __future__ import annotations

import mlx.nn as nn

# Layers keep keys and values only; masks come from the cache and positions from rotary modules, or
# from what is hooked in their place.
_TREES = """
afm7 afmoe apertus bailing_moe bitnet cohere cohere2 dbrx deepseek deepseek_v2 deepseek_v3
deepseek_v32 dots1 ernie4_5 ernie4_5_moe exaone exaone4 exaone_moe gemma gemma2 gemma3
gemma3_text gemma3n gemma4 gemma4_text glm glm4 glm4_moe glm4_moe_lite glm_moe_dsa gpt2
gpt_bigcode gpt_neox gpt_oss gptj granite granitemoe helium hunyuan hunyuan_v1_dense
internlm2 internlm3 iquestloopcoder kimi_k25 kimi_vl Klear laguna lille-130m llama llama4
llama4_text longcat_flash mellum mimo mimo_v2_flash minicpm minicpm3 minimax minimax_m3_vl
ministral3 mistral3 mistral4 mixtral muse_glimmer nanbeige nanochat nemotron nemotron-nas
olmo2 olmo3 olmoe openelm phi phi3 phimoe phixtral pixtral plamo plamo3 qwen qwen2
qwen2_moe qwen2_vl qwen3 qwen3_moe qwen3_vl qwen3_vl_moe seed_oss smollm3 solar_open
spark2_5 stablelm starcoder2 step3p5 talkie telechat3 youtu_llm
"""
# Some layers carry recurrent state, and see the paths of a tree.
_HYBRIDS = """
baichuan_m1 bailing_hybrid bailing_moe_linear bailing_moe_v3 deepseek_v41 falcon_h1 gear
granitemoehybrid jamba kimi_k3 kimi_linear lfm2 lfm2-vl lfm2_moe longcat_flash_ngram mamba
mamba2 nemotron_h olmo_hybrid plamo2 prism_hadamard_qwen35 qwen3_5 qwen3_5_moe qwen3_next
recurrent_gemma rwkv7
"""
HYBRIDS = frozenset(_HYBRIDS.split())
TREES = frozenset(_TREES.split()) | HYBRIDS

# What crosses between layers stands in the rows of paths: the inner module sees them as a whole.
WHOLE = frozenset({"deepseek_v41"})

# What has to be hooked in a model for its trees to be verified rightly, as words for a sentence.
ROTARY = "rotary positions"
POSITION_TABLE = "the table of positions"
CHUNK_MASK = "the mask of attention chunks"
GROUPED_MASK = "the mask of grouped heads"
QUERY_SCALE = "the scale of queries"
KEY_BLOCKS = "the choice of key blocks"
CONVOLUTION = "the convolution of keys and values"
STATE = "recurrent state"
# Of the architectures that need something else than rotary positions; recurrent state is needed
# wherever a model has any.
_HOOKS_NEEDED = {
    "baichuan_m1": {CONVOLUTION, ROTARY},
    "gear": {GROUPED_MASK, ROTARY},
    "gemma2": {GROUPED_MASK, ROTARY},
    "gpt2": {POSITION_TABLE},
    "gpt_bigcode": {POSITION_TABLE},
    "llama4": {CHUNK_MASK, ROTARY},
    "minimax_m3_vl": {KEY_BLOCKS, ROTARY},
    "ministral3": {QUERY_SCALE, ROTARY},
    "mistral4": {QUERY_SCALE, ROTARY},
}
# Attention without positions, or none at all.
_NO_POSITIONS = frozenset(
    ["jamba", "kimi_k3", "kimi_linear", "mamba", "mamba2", "nemotron_h", "rwkv7"]
)

# Without caches mlx-lm computes something else: layers that share keys and values make their own.
TAUGHT_WITH_CACHES = frozenset({"gemma3n"})

# Verified as trees, but one text at a time: blocks of keys are chosen, or keys are compressed in
# groups, by the positions of one text only.
UNBATCHED = frozenset({"deepseek_v41", "minimax_m3_vl"})

# Attention counts the rows that it is given, so it may not be given more than are seen.
COUNTS_ROWS = frozenset({"afm7", "minimax_m3_vl"})

# Decoding is plain; the reason goes into a sentence after "the architecture '...'".
REFUSED = {
    "phi3small": (
        "its attention layers add a boolean mask to the scores in mlx-lm, so rows see later rows "
        "when several are computed at once"
    ),
}


def hooks_needed(architecture: str) -> frozenset[str]:
    """What has to be hooked for the draft trees of an architecture to be verified rightly.

    Rotary positions may yet be left out by a model's configuration: see ``positions``.
    """
    if architecture in _NO_POSITIONS:
        return frozenset()
    return frozenset(_HOOKS_NEEDED.get(architecture, {ROTARY}))


def architecture_of(model: nn.Module) -> str:
    """The name of the model's module in ``mlx_lm.models``, or of whatever module it is from."""
    return type(model).__module__.rsplit(".", 1)[-1]
