"""Loading a model at another precision than the one it is stored in."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load as load_target

from ..conversion.drafter_part import quantise_drafter
from ..conversion.options import Options
from ..conversion.target_part import quantise
from ..drafting.drafter import Drafter
from ..drafting.shared_head import share_rows
from ..engine.model import SpeculativeModel
from ..errors import RedrafterError, SharedError
from ..system.device import on_gpu
from ..system.rank_watch import current_ranks
from ..target.casting import quantised_layers
from ..target.target import Target
from ..text.boundary import read_json
from ..text.drafter_files import check_pair, load_drafter, load_recorded
from ..text.loading import load, resolve_path
from ..text.places import CONFIG_FILE, DRAFTER_DIRECTORY, locate
from .names import BITS, DTYPES, STORED

GROUP_SIZE = 64


def load_at(
    model: str, precision: str, **options: Any
) -> tuple[SpeculativeModel, TokenizerWrapper]:
    """Load a target and its drafter at a precision.

    Args:
        model: A directory or Hub repo.
        precision: "stored" as :func:`mlx_redrafter.load` has it; a dtype; or "8bit" and "4bit",
            quantised here and now as ``convert.py -q`` does it.
        **options: Further arguments of :func:`mlx_redrafter.load`.

    Raises:
        RedrafterError: If something is missing, an adapter is to be quantised with its target, or
            a quantised model is asked for at another precision than its own.
    """
    check_precision(model, precision, options.get("revision"))
    if precision == STORED:
        return load(model, **options)
    if precision in DTYPES:
        return load(model, dtype=getattr(mx, precision), **options)
    if options.get("adapter_path") is not None:
        raise RedrafterError(
            f"A model with an adapter is not quantised for {precision}: fuse the two with "
            "mlx_lm.fuse and pass the result."
        )
    if current_ranks() is not None:
        raise SharedError(
            f"Several processes share a model as it is stored: convert it to {precision} first "
            "(convert.py -q), and pass the result."
        )
    return _load_quantised(model, BITS[precision], options)


def check_precision(model: str, precision: str, revision: str | None = None) -> None:
    """Refuse another precision than the stored one for a model that is quantised.

    Raises:
        RedrafterError: So, or if the model's configuration cannot be read.
    """
    if precision == STORED:
        return
    config = read_json(resolve_path(model, revision) / CONFIG_FILE, "a model directory")
    if "quantization" in config or "quantization_config" in config:
        raise RedrafterError(
            f"{model} is quantised already, and at {precision} it would be another model: ask for "
            f"the precision '{STORED}', or pass the unquantised model."
        )


def release_memory() -> None:
    """Give back what models that are no longer used have taken."""
    gc.collect()
    mx.clear_cache()


def _load_quantised(
    name: str, bits: int, options: dict[str, Any]
) -> tuple[SpeculativeModel, TokenizerWrapper]:
    checked, tokenizer = load(name, **options)  # everything that can be wrong is told here
    drafter, drafts = checked.drafter, checked.head is not None
    known: dict[str, Any] = {
        "name": checked.name,
        "config": checked.config,
        "recorded": checked.recorded,
    }
    # Loaded again: the layers of a target that is in use cannot be exchanged under it.
    del checked
    release_memory()
    located = locate(name, revision=options.get("revision"))
    path = located.directory
    plain, _, config = load_target(
        str(path), lazy=True, return_config=True, model_config=options.get("model_config"),
        tokenizer_config=options.get("tokenizer_config"),
        trust_remote_code=options.get("trust_remote_code", False),
    )  # fmt: skip
    if not on_gpu():
        plain.set_dtype(mx.float32)
    plain, _ = quantise(plain, config, GROUP_SIZE, bits)
    target = Target(plain)
    if drafts:
        given, own = options.get("drafter"), located.drafter or path / DRAFTER_DIRECTORY
        directory = resolve_path(given) if given else own
        drafter = _drafter_for(target, tokenizer, directory, f"{bits}bit")
    model = SpeculativeModel(target, drafter, **known)
    mx.eval(plain.parameters(), model.head.parameters() if model.head is not None else [])
    return model, tokenizer


def other_drafter(
    model: SpeculativeModel, tokenizer: TokenizerWrapper, name: str, precision: str
) -> SpeculativeModel:
    """The same target with another drafter, such as one of independent heads.

    Args:
        model: Loaded at ``precision``; its own drafter is left alone.
        tokenizer: The target's.
        name: The other drafter's directory or Hub repo.
        precision: Of the other drafter.

    Raises:
        RedrafterError: If it cannot be loaded, or was made for another target.
    """
    path = resolve_path(name)
    drafter = _drafter_for(model.target, tokenizer, path, precision)
    mx.eval(drafter.parameters())
    name = f"{model.name} with {path.name}"
    return SpeculativeModel(
        model.target, drafter, name, model.config, ranks=model.ranks, recorded=load_recorded(path)
    )


def _drafter_for(
    target: Target, tokenizer: TokenizerWrapper, directory: Path, precision: str
) -> Drafter:
    """A drafter from disk at a precision, bound to its target; its weights stay lazy."""
    drafter = load_drafter(directory)
    check_pair(drafter.config, target, tokenizer)
    if precision in DTYPES:
        drafter.set_dtype(getattr(mx, precision))
    elif not on_gpu() and not quantised_layers(drafter):
        drafter.set_dtype(mx.float32)
    if precision in BITS:
        quantise_drafter(drafter, Options(quantize=True, q_bits=BITS[precision]))
    if drafter.needs_rows:
        share_rows(drafter, target)
    return drafter
