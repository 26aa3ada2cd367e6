"""A bundle on disk that calls tools: a real Llama whose every token has one successor."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
from live_server import TOOL_TEMPLATE, tool_tokenizer
from mlx.utils import tree_flatten
from mlx_lm.models.llama import Model, ModelArgs
from tokenizers import AddedToken
from transformers import AutoTokenizer

from mlx_redrafter.drafting.config import DrafterConfig
from mlx_redrafter.drafting.recurrent_drafter import RecurrentDrafter
from mlx_redrafter.text.drafter_files import save_drafter

# What follows the last word of a conversation. Each piece is one token and stands in one answer
# only, so that a model that sees nothing but the latest token can say them all.
PIECES = {
    "say!": ["The dog ", "does not ", "mind."],
    "think!": ["<think>", "Is it lazy?", "</think>", "Yes, ", "it is."],
    "call!": ["Let me look.", '<tool_call>{"name": "look", ', '"arguments": {"at": "犬"}', "}END"],
    "twice!": [
        '<tool_call>{"name": "look", "arguments": {"at": "a"}}END',
        '\n<tool_call>{"name": "glance", "arguments": {}}END',
        " Both.",
    ],
    "broken!": ["<tool_call>{not ", "jsonEND", " sorry"],
    "cut!": ['<tool_call>{"name": "look", "argu', "ments"],
    "path!": [
        '<tool_call>{"name": "look", "arguments": {"at": "',
        *(f"/{letter * 4}" for letter in "abcdefghijklmnop"),
        '"}}END',
    ],
    "sleeps!": ["It ", "sleeps."],
    "long!": [f" {letter * 3}" for letter in "abcdefghijklmnopqrstuvwxyz"],
    "ever!": [" again", " again"],
    "<tool_call>": ['{"name": "look", "arguments": ', '{"at": "must"}}END'],
}
ANSWERS = {
    word: [piece.replace("END", "</tool_call>") for piece in pieces]
    for word, pieces in PIECES.items()
}
GENERATION = "{% if add_generation_prompt %}<|assistant|>"
LAST_WORD = GENERATION + "{{ (messages[-1]['content'].split() or ['say!']) | last }}"
SURE = 4.0  # weight of a successor; all other tokens together are left less than 1e-20


def make_calling_bundle(directory: Path, context: int = 4096) -> Path:
    """Write the bundle, with a draft head that knows nothing; returns its path."""
    tool_tokenizer(directory)
    tokenizer = AutoTokenizer.from_pretrained(str(directory))
    assert LAST_WORD not in TOOL_TEMPLATE
    tokenizer.chat_template = TOOL_TEMPLATE.replace(GENERATION, LAST_WORD)
    texts = list(dict.fromkeys(t for word, text in ANSWERS.items() for t in (word, *text)))
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in texts])
    tokenizer.save_pretrained(str(directory))
    size = len(tokenizer)
    hidden = -(-size // 8) * 8
    config = {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": 1,
        "intermediate_size": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": size,
        "max_position_embeddings": context,
        "tie_word_embeddings": False,
    }
    weights = dict(tree_flatten(Model(ModelArgs.from_dict(config)).parameters()))
    # Attention and MLP add nothing: what the head sees is the latest token's own direction.
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        weights[f"model.layers.0.{name}.weight"] *= 0
    weights["model.embed_tokens.weight"] = mx.eye(size, hidden)
    successors: dict[int, int] = {}
    for word, text in ANSWERS.items():
        tokens = [*tokenizer.convert_tokens_to_ids([word, *text]), tokenizer.eos_token_id]
        for token, successor in pairwise(tokens):
            successors.setdefault(token, successor)
    head = mx.zeros((size, hidden))
    for token, successor in successors.items():
        head[successor, token] = SURE
    weights["lm_head.weight"] = head
    mx.save_safetensors(str(directory / "model.safetensors"), weights, {"format": "mlx"})
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    mx.random.seed(0)
    shape = DrafterConfig(hidden_size=hidden, vocab_size=size, exit_dim=16, num_draft_layers=1)
    save_drafter(directory / "drafter", RecurrentDrafter(shape))
    return directory
