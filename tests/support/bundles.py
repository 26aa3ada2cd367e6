"""A tiny random bundle on disk: an mlx-lm Llama, a byte-level tokenizer and a drafter."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.llama import Model, ModelArgs
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mlx_redrafter.drafting.config import DrafterConfig
from mlx_redrafter.drafting.recurrent_drafter import RecurrentDrafter
from mlx_redrafter.text.drafter_files import save_drafter

PROSE = [
    "the quick brown fox jumps over the lazy dog and the dog does not mind",
    "a drafter guesses what the model is about to say and the model checks it",
    "what does this do? it returns the sum of all items in the list",
]
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ROLES = ["<|system|>", "<|user|>", "<|assistant|>"]


def make_bundle(
    directory: Path,
    *,
    drafter: bool = True,
    context: int = 512,
    seed: int = 1,
    layers: int = 2,
    hidden_size: int = 32,
) -> Path:
    """Write a bundle whose answers are noise, but the same noise each time; returns its path."""
    directory.mkdir(parents=True, exist_ok=True)
    vocab_size = make_tokenizer(directory)
    mx.random.seed(seed)
    config = {
        "model_type": "llama",
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "intermediate_size": 2 * hidden_size,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": vocab_size,
        "max_position_embeddings": context,
        "tie_word_embeddings": True,
    }
    model = Model(ModelArgs.from_dict(config))
    # Larger than the usual start, or every token would be about as likely as the next.
    weights = {k: v * 3 if v.ndim > 1 else v for k, v in tree_flatten(model.parameters())}
    mx.save_safetensors(str(directory / "model.safetensors"), weights, {"format": "mlx"})
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    if drafter:
        write_drafter(directory, hidden_size, vocab_size)
    return directory


def write_drafter(bundle: Path, hidden_size: int, vocab_size: int) -> None:
    """Write a small random drafter into a bundle."""
    shape = DrafterConfig(
        hidden_size=hidden_size, vocab_size=vocab_size, exit_dim=32, num_draft_layers=1
    )
    save_drafter(bundle / "drafter", RecurrentDrafter(shape))


def make_tokenizer(directory: Path) -> int:
    """Write a byte-level BPE tokenizer with a chat template; returns its size."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        show_progress=False,
        special_tokens=["<|end|>", *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(PROSE, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", additional_special_tokens=ROLES
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(str(directory))
    return len(fast)
