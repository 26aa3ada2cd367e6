"""GGUF tensors as the parameters of an mlx-lm model: names, orders of rows, types."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes

from ..errors import RedrafterError
from .blocks import GROUP, KEPT_BITS, Affine, Array, dequantise, keep
from .families import Config, Family
from .file import GGUFModel, GGUFTensor, package
from .rope import FACTOR_TENSORS

PER_HEAD = re.compile(r"\.norms\.(\d+)\.")  # StableLM's q and k, GGUF's rows of one tensor

# Computed by the model itself, or of use to other engines only.
UNUSED = (".attn_rot_embd.weight", ".rotary_emb.inv_freq", *FACTOR_TENSORS)


@dataclass(frozen=True)
class Placed:
    """One parameter of the model and the stored tensor it comes from.

    Attributes:
        name: mlx-lm's ("model.layers.0.self_attn.q_proj.weight").
        tensor: The stored one.
        shape: The parameter's; the stored one may lack extents of 1, or have more of them.
        quantisable: Whether the module can be quantised, so that block types can be kept.
    """

    name: str
    tensor: GGUFTensor
    shape: tuple[int, ...]
    quantisable: bool

    @property
    def module(self) -> str:
        """The parameter's module."""
        return self.name.rpartition(".")[0]


def place(model: GGUFModel, family: Family, config: Config) -> list[Placed]:
    """Find the stored tensor of every parameter.

    Raises:
        RedrafterError: If one is missing or of another shape, or one is left over.
    """
    built = _build(model, config)
    _check_positions(model, config, built)
    names = package().get_tensor_name_map(_architecture(model), config["num_hidden_layers"])
    quantisable = {name for name, m in built.named_modules() if hasattr(m, "to_quantized")}
    placed = []
    for name, array in tree_flatten(built.parameters()):
        if name == "lm_head.weight" and "output.weight" not in model.tensors:
            continue  # tied, where mlx-lm's module exists until the weights are loaded
        stored, head = _stored_name(name, family, names)
        tensor = model.tensors.get(stored or "")
        if tensor is not None and head is not None and head < tensor.shape[0]:
            tensor = tensor.row(head)
        shape = tuple(array.shape)
        if tensor is None or _extents(tensor.shape) != _extents(shape):
            found = "has it not" if tensor is None else f"has it in the shape {tensor.shape}"
            raise RedrafterError(
                f"'{model.path}' cannot be converted: a model of the family "
                f"'{model.architecture}' has a tensor '{stored or name}' of the shape {shape}, and "
                f"the file {found}."
            )
        module = name.rpartition(".")[0]
        keepable = tensor.shape == shape and name.endswith(".weight") and module in quantisable
        placed.append(Placed(name, tensor, shape, keepable))
    _check_rest(model, placed)
    return placed


def _extents(shape: tuple[int, ...]) -> list[int]:
    return [extent for extent in shape if extent != 1]


def _architecture(model: GGUFModel) -> Any:
    names = package().MODEL_ARCH_NAMES
    return next(key for key, value in names.items() if value == model.architecture)


def _build(model: GGUFModel, config: Config) -> nn.Module:
    """The mlx-lm model, its parameters lazy."""
    try:
        model_class, args_class = _get_classes(config)
        return model_class(args_class.from_dict(config))
    except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())
        raise RedrafterError(
            f"'{model.path}' cannot be converted: mlx-lm builds no model from its metadata "
            f"({reason})."
        ) from None


def _check_positions(model: GGUFModel, config: Config, built: nn.Module) -> None:
    """Refuse a scaling of positions that mlx-lm's class of the family does not look at."""
    scaling = config.get("rope_scaling")
    if scaling is None:
        return
    plain = _build(model, {k: v for k, v in config.items() if k != "rope_scaling"})
    if _turning(plain) == _turning(built):
        raise RedrafterError(
            f"'{model.path}' cannot be converted: it scales its positions ('{scaling['type']}'), "
            f"which mlx-lm's model of the family '{model.architecture}' does not do."
        )


def _turning(built: nn.Module) -> list[tuple[str, type, Any]]:
    """The modules that turn queries and keys, and by what scale; other scales have own classes."""
    return [
        (name, type(module), getattr(module, "scale", None))
        for name, module in built.named_modules()
        if name.endswith("rope")
    ]


def _stored_name(name: str, family: Family, names: Any) -> tuple[str | None, int | None]:
    """The stored tensor's name, and which of its rows it is where each head has a norm."""
    for ours, theirs in family.renamed:
        name = name.replace(ours, theirs)
    head = PER_HEAD.search(name)
    name = PER_HEAD.sub(".", name)
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    return None if found is None else str(found), None if head is None else int(head[1])


def _check_rest(model: GGUFModel, placed: list[Placed]) -> None:
    used = {p.tensor.name for p in placed}
    rest = [n for n in model.tensors if n not in used and not n.endswith(UNUSED)]
    # Gemma's output rows are its embeddings, whatever else a file says.
    rest = [n for n in rest if n != "output.weight" or "gemma" not in model.architecture]
    if rest:
        more = f" and {len(rest) - 1} more" if len(rest) > 1 else ""
        raise RedrafterError(
            f"'{model.path}' cannot be converted: its tensor '{rest[0]}'{more} has no place in "
            f"mlx-lm's model of the family '{model.architecture}'."
        )


def working_type(placed: list[Placed], family: Family) -> mx.Dtype:
    """The type for everything that is not packed, which is also the activations'.

    Scales of kept blocks are float16, so float16 keeps them; a family whose activations leave its
    range gets float32 then, and else bfloat16. Files in bfloat16 or float32 stay what they are.
    """
    kinds = {p.tensor.type for p in placed if len(p.tensor.shape) > 1}
    if kinds == {"F32"}:
        return mx.float32
    if kinds <= {"BF16", "F32"}:
        return mx.bfloat16
    if not family.wide:
        return mx.float16
    return mx.float32 if kinds & KEPT_BITS.keys() else mx.bfloat16


def parameters(
    model: GGUFModel,
    family: Family,
    config: Config,
    placed: list[Placed],
    dtype: mx.Dtype,
    dequantised: bool = False,
) -> Iterator[tuple[Placed, dict[str, mx.array], int]]:
    """Make the model's arrays, one tensor at a time.

    Args:
        model: The file.
        family: Its family.
        config: Its configuration.
        placed: Its parameters.
        dtype: Of what is not packed.
        dequantised: Whether block types are unpacked too.

    Yields:
        The parameter, its arrays by name, and the bits kept, 0 where it was dequantised.

    Raises:
        RedrafterError: If a weight is NaN or infinite, or leaves ``dtype``.
    """
    for item in placed:
        kept = keep(item.tensor) if item.quantisable and not dequantised else None
        if kept is not None:
            order = lambda a, item=item: _reorder(a, item.name, family, config)  # noqa: E731
            yield item, _packed_arrays(item, kept, order, dtype), kept.bits
            continue
        weights = dequantise(item.tensor).reshape(item.shape)
        weights = _reorder(weights, item.name, family, config)
        if family.norm_offset and item.name.endswith("norm.weight"):
            weights = weights.astype(np.float32) - np.float32(family.norm_offset)
        yield item, {item.name: _checked(model, item, weights, dtype)}, 0


def _packed_arrays(item: Placed, kept: Affine, order: Any, dtype: mx.Dtype) -> dict[str, mx.array]:
    scale_type = dtype if dtype == mx.float32 else mx.float16
    return {
        item.name: mx.array(order(kept.weight)),
        f"{item.module}.scales": mx.array(order(kept.scales)).astype(scale_type),
        f"{item.module}.biases": mx.array(order(kept.biases)).astype(scale_type),
    }


def _reorder(rows: Array, name: str, family: Family, config: Config) -> Array:
    """Rows of q and k from pairs that turn together to mlx-lm's halves of a head."""
    part = name.rpartition(".")[0].rpartition(".")[2]
    if not family.permuted or part not in ("q_proj", "k_proj"):
        return rows
    heads = config["num_attention_heads" if part == "q_proj" else "num_key_value_heads"]
    paired = rows.reshape(heads, len(rows) // heads // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(paired.swapaxes(1, 2).reshape(rows.shape))


def _checked(model: GGUFModel, item: Placed, weights: Array, dtype: mx.Dtype) -> mx.array:
    shown = f"'{model.path}' cannot be converted: its tensor '{item.tensor.name}'"
    if not np.isfinite(weights).all():
        raise RedrafterError(f"{shown} holds NaN or infinite values: download it again.")
    array = mx.array(weights).astype(dtype)
    if not mx.isfinite(array).all().item():
        raise RedrafterError(f"{shown} leaves the range of {str(dtype)[9:]}: pass --dtype float32.")
    return array


def quantisation(kept: dict[str, int]) -> dict[str, Any] | None:
    """config.json's entry for modules and their bits; None where there are none."""
    if not kept:
        return None
    bits = sorted(kept.values())
    most = max(set(bits), key=bits.count)
    entry: dict[str, Any] = {"group_size": GROUP, "bits": most, "mode": "affine"}
    own = {n: {"group_size": GROUP, "bits": b, "mode": "affine"} for n, b in kept.items()}
    return entry | {name: value for name, value in own.items() if value["bits"] != most}
