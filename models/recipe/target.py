"""A small Llama in PyTorch, written for CPU training and saved in the Hugging Face layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from .files import replace_file, write_json


@dataclass(frozen=True)
class Shape:
    """Sizes of the model."""

    vocabulary: int = 3072
    width: int = 256
    layers: int = 6
    heads: int = 4
    feed_forward: int = 704
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    positions: int = 2048


def rotary_tables(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (length, head width), for the rotate-half convention."""
    half = shape.width // shape.heads // 2
    rates = shape.rope_theta ** (-torch.arange(half, dtype=torch.float32) / half)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), rates)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x, (batch, heads, length, head width)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class LayerCache(nn.Module):
    """Attention and feed-forward with pre-normalisation; input projections are fused."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        self.heads = shape.heads
        self.norm_1 = nn.RMSNorm(width, eps=shape.norm_eps)
        self.norm_2 = nn.RMSNorm(width, eps=shape.norm_eps)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * shape.feed_forward, bias=False)
        self.down = nn.Linear(shape.feed_forward, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm_1(x)).view(batch, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        gate, up = self.gate_up(self.norm_2(x)).chunk(2, dim=-1)
        return x + self.down(functional.silu(gate) * up)


class Target(nn.Module):
    """The language model; the head is the embedding."""

    def __init__(self, shape: Shape, generator: torch.Generator) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(LayerCache(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        cos, sin = rotary_tables(shape, shape.positions)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        # Residual branches start smaller, so that the sum keeps its size with depth.
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                deep = name.endswith(("out.weight", "down.weight"))
                std = 0.02 / (2 * shape.layers) ** 0.5 if deep else 0.02
                nn.init.normal_(parameter, std=std, generator=generator)

    def hidden(self, tokens: Tensor) -> Tensor:
        """Final normalised states, (batch, length, width), of tokens (batch, length)."""
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        length = tokens.shape[1]
        cos, sin = self.cos[:length].to(dtype), self.sin[:length].to(dtype)
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)

    def loss(self, tokens: Tensor, counted: Tensor) -> Tensor:
        """Mean cross-entropy in nats of the tokens that ``counted`` (batch, length) marks."""
        states = self.hidden(tokens[:, :-1])
        wanted = counted[:, 1:]
        # Only counted positions reach the head, the costliest matrix.
        logits = functional.linear(states[wanted], self.embedding.weight)
        return functional.cross_entropy(logits.float(), tokens[:, 1:][wanted])


def huggingface_weights(model: Target) -> dict[str, Tensor]:
    """bfloat16 weights under the names of transformers' Llama."""
    shape = model.shape
    weights = {
        "model.embed_tokens.weight": model.embedding.weight,
        "model.norm.weight": model.norm.weight,
    }
    for i, layer in enumerate(model.layers):
        q, k, v = layer.qkv.weight.split(shape.width)
        gate, up = layer.gate_up.weight.split(shape.feed_forward)
        parts = {
            "input_layernorm": layer.norm_1.weight,
            "post_attention_layernorm": layer.norm_2.weight,
            "self_attn.q_proj": q,
            "self_attn.k_proj": k,
            "self_attn.v_proj": v,
            "self_attn.o_proj": layer.out.weight,
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": layer.down.weight,
        }
        weights |= {f"model.layers.{i}.{name}.weight": part for name, part in parts.items()}
    return {n: w.detach().to(torch.bfloat16).contiguous().clone() for n, w in weights.items()}


def save_huggingface(model: Target, end_token: int, path: Path) -> None:
    """Write config.json, generation_config.json and model.safetensors."""
    shape = model.shape
    path.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.width,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "head_dim": shape.width // shape.heads,
        "hidden_act": "silu",
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "max_position_embeddings": shape.positions,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": None,
        "eos_token_id": end_token,
        "pad_token_id": end_token,
        "torch_dtype": "bfloat16",
    }
    write_json(path / "config.json", config)
    write_json(path / "generation_config.json", {"eos_token_id": end_token})
    with replace_file(path / "model.safetensors") as temporary:
        save_file(huggingface_weights(model), temporary, metadata={"format": "pt"})


def load_weights(model: Target, path: Path) -> Target:
    """Read a checkpoint that ``save_huggingface`` wrote back into ``model`` (float32)."""
    from safetensors.torch import load_file

    loaded = load_file(path / "model.safetensors")
    state = {
        "embedding.weight": loaded["model.embed_tokens.weight"],
        "norm.weight": loaded["model.norm.weight"],
    }
    for i in range(model.shape.layers):
        part = {
            key.removeprefix(f"model.layers.{i}.").removesuffix(".weight"): value
            for key, value in loaded.items()
            if key.startswith(f"model.layers.{i}.")
        }
        qkv = [part[f"self_attn.{name}_proj"] for name in "qkv"]
        state |= {
            f"layers.{i}.norm_1.weight": part["input_layernorm"],
            f"layers.{i}.norm_2.weight": part["post_attention_layernorm"],
            f"layers.{i}.qkv.weight": torch.cat(qkv),
            f"layers.{i}.out.weight": part["self_attn.o_proj"],
            f"layers.{i}.gate_up.weight": torch.cat((part["mlp.gate_proj"], part["mlp.up_proj"])),
            f"layers.{i}.down.weight": part["mlp.down_proj"],
        }
    model.load_state_dict({key: value.float() for key, value in state.items()})
    return model
