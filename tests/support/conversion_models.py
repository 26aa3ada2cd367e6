"""Tiny checkpoints as PyTorch users have them, for the conversion tests."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest

# A test module that imports this one is skipped as a whole where PyTorch is absent.
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

HIDDEN = 64
VOCAB = 128
WORDS = [*string.ascii_letters, *string.digits, *string.punctuation, " ", "\n"]


def write_tokenizer(directory: Path, words: list[str] = WORDS) -> None:
    """One character a token, in the files that save_pretrained writes."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2}
    vocabulary |= {word: i + len(vocabulary) for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(directory)


def make_llama(dtype: Any = torch.float32, **changes: Any) -> Any:
    """A Llama of two layers with random weights."""
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        **{
            "hidden_size": HIDDEN,
            "intermediate_size": 2 * HIDDEN,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": VOCAB,
            "max_position_embeddings": 256,
            "tie_word_embeddings": False,
            "initializer_range": 0.1,
            "bos_token_id": 0,
            "eos_token_id": 1,
            **changes,
        }
    )
    return transformers.LlamaForCausalLM(config).to(dtype).eval()


def write_target(directory: Path, model: Any = None, layout: str = "safetensors") -> Path:
    """Save a target: as safetensors, bin, pt or pth, with or without -sharded behind."""
    model = make_llama() if model is None else model
    write_tokenizer(directory)
    size = "100KB" if layout.endswith("-sharded") else "5GB"
    model.save_pretrained(directory, max_shard_size=size)
    kind = layout.removesuffix("-sharded")
    if kind == "safetensors":
        return directory
    for old in directory.glob("*.safetensors*"):
        old.unlink()
    write_torch(directory, model.state_dict(), layout)
    return directory


def write_torch(directory: Path, tensors: dict[str, Any], layout: str) -> None:
    """Save a state dict as older versions of transformers did: kind "bin", "pt" or "pth"."""
    kind = layout.removesuffix("-sharded")
    if not layout.endswith("-sharded"):
        torch.save(tensors, directory / f"pytorch_model.{kind}")
        return
    names = list(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"pytorch_model-{number:05d}-of-00002.{kind}"
        torch.save({name: tensors[name] for name in part}, directory / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / f"pytorch_model.{kind}.index.json").write_text(json.dumps(index))


class HeadConfig(transformers.PretrainedConfig):
    """The configuration keys of Apple's drafters."""

    model_type = "recurrent_drafting_drafter"

    def __init__(
        self,
        hidden_size: int = -1,
        vocab_size: int = -1,
        exit_dim: int = -1,
        num_draft_layers: int = -1,
        num_lookback_tokens: int = -1,
        rnn: bool = False,
        emb_norm: bool = False,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        self.hidden_size, self.vocab_size = hidden_size, vocab_size
        self.exit_dim, self.num_draft_layers = exit_dim, num_draft_layers
        self.num_lookback_tokens, self.rnn, self.emb_norm = num_lookback_tokens, rnn, emb_norm


class TorchBlock(torch.nn.Module):
    """x + silu(linear(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(width, width)

    def forward(self, x: Any) -> Any:
        return x + torch.nn.functional.silu(self.linear(x))


class TorchHead(transformers.PreTrainedModel):
    """The recurrent draft head in PyTorch, by its description (arXiv 2403.09919, section 3.1)."""

    config_class = HeadConfig

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        width = 2 * config.hidden_size
        if config.exit_dim != width:
            self.input_proj = torch.nn.Linear(width, config.exit_dim)
        blocks = [TorchBlock(config.exit_dim) for _ in range(config.num_draft_layers)]
        rows = torch.nn.Linear(config.exit_dim, config.vocab_size, bias=False)
        self.lm_head = torch.nn.Sequential(*blocks, rows)
        if config.rnn:
            self.rnn_u = torch.nn.Linear(config.hidden_size, config.hidden_size)
            self.rnn_w = torch.nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        if config.emb_norm:
            self.emb_norm = torch.nn.LayerNorm(config.hidden_size)
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.1)

    def advance(self, embedding: Any, state: Any) -> Any:
        if not self.config.rnn:
            return embedding + state
        return torch.nn.functional.silu(self.rnn_w(embedding) + self.rnn_u(state))

    def logits(self, hidden: Any, state: Any) -> Any:
        x = torch.cat([hidden, state], dim=-1)
        if hasattr(self, "input_proj"):
            x = self.input_proj(x)
        return self.lm_head(x)


def make_head(rnn: bool = True, projected: bool = False, **changes: Any) -> TorchHead:
    """A head with random weights for ``make_llama``'s model."""
    torch.manual_seed(2)
    values = {
        "hidden_size": HIDDEN,
        "vocab_size": VOCAB,
        "exit_dim": HIDDEN if projected else 2 * HIDDEN,
        "num_draft_layers": 2,
        "rnn": rnn,
        **changes,
    }
    return TorchHead(HeadConfig(**values)).eval()


def write_head(directory: Path, head: TorchHead, layout: str = "safetensors") -> Path:
    """Save a head as ``write_target`` saves a target."""
    size = "40KB" if layout.endswith("-sharded") else "5GB"
    head.save_pretrained(directory, max_shard_size=size)
    if not layout.startswith("safetensors"):
        for old in directory.glob("*.safetensors*"):
            old.unlink()
        write_torch(directory, head.state_dict(), layout)
    return directory


def write_memory_head(directory: Path) -> Path:
    """Save a head with a memory of the text, which this package alone trains, with random weights.

    All its widths are multiples of 64, so that every layer can be quantised.
    """
    import mlx.core as mx

    from mlx_redrafter.drafting.config import DrafterConfig
    from mlx_redrafter.drafting.memory_drafter import MemoryDrafter
    from mlx_redrafter.text.drafter_files import save_drafter

    mx.random.seed(2)
    config = DrafterConfig(
        hidden_size=HIDDEN,
        vocab_size=VOCAB,
        exit_dim=64,
        num_draft_layers=1,
        memory_heads=2,
        memory_head_dim=32,
        memory_window=16,
        state_size=64,
        mlp_size=64,
        target_layers=(0,),
    )
    save_drafter(directory, MemoryDrafter(config))
    return directory
