"""Drafters to and from disk, and whether one goes with a target."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..drafting.config import DrafterConfig
from ..drafting.drafter import Drafter
from ..drafting.kinds import drafter_of
from ..drafting.recorded import RecordedDrafts
from ..drafting.token_map import check_token_map
from ..errors import RedrafterError
from ..ranges import of_kind
from ..system.directories import made_directory
from ..system.disk import writing
from ..system.files import atomic_path, local_path, write_json
from ..system.tensor_files import tensors_of
from ..target.target import Target
from .boundary import naming, read_json, reading
from .bounds import check_config
from .drafter_pair import check_note, config_note
from .places import CONFIG_FILE, RECORDED_FILE, WEIGHTS_FILE


def load_drafter(directory: str | Path) -> Drafter:
    """Read a drafter from ``config.json`` and ``model.safetensors``; weights stay lazy.

    Raises:
        RedrafterError: If a file is missing, the tensors are not the config's, or were written with
            another one.
    """
    directory = local_path(directory)
    values = read_json(directory / CONFIG_FILE, "a drafter's directory")
    with naming(directory / CONFIG_FILE):
        config = DrafterConfig.from_dict(values)
    weights_path = directory / WEIGHTS_FILE
    if not weights_path.is_file():
        raise RedrafterError(
            f"{directory} has no {WEIGHTS_FILE}: convert the drafter with convert.py first."
        )
    check_config(config.to_dict(), tensors_of([weights_path]), directory / CONFIG_FILE)
    with reading(weights_path, "make or fetch it again"):
        loaded: Any = mx.load(str(weights_path), return_metadata=True)
    weights: dict[str, mx.array] = loaded[0]
    drafter = drafter_of(config)
    if config.quantization is not None:
        with reading(directory / CONFIG_FILE, "make or fetch it again"):
            _quantize_like(drafter, config.quantization, weights)
    _check_tensors(drafter, weights, weights_path)
    check_note(weights_path, loaded[1], config)
    drafter.load_weights(list(weights.items()))
    drafter.eval()
    return drafter


def save_drafter(directory: str | Path, drafter: Drafter) -> None:
    """Write a drafter's ``config.json`` and ``model.safetensors``, each atomically.

    Where it is cut off between the two, loading tells. What was recorded of another drafter there
    is removed.

    Raises:
        RedrafterError: If it is no drafter; of the kind DiskError if it cannot be written.
    """
    of_kind(drafter, "drafter", Drafter, "a Drafter")
    directory = local_path(directory)
    with writing(directory):
        write_drafter(directory, drafter)


def write_drafter(directory: Path, drafter: Drafter) -> None:
    """What :func:`save_drafter` does, for those who tell of a full disk in their own words.

    Raises:
        OSError: If it cannot be written; or mlx's RuntimeError.
    """
    with made_directory(directory):
        (directory / RECORDED_FILE).unlink(missing_ok=True)
        with atomic_path(directory / WEIGHTS_FILE) as temporary:
            weights = dict(tree_flatten(drafter.parameters()))
            metadata = {"format": "mlx", **config_note(drafter.config)}
            mx.save_safetensors(str(temporary), weights, metadata)
        write_json(directory / CONFIG_FILE, drafter.config.to_dict())


def load_recorded(directory: str | Path) -> RecordedDrafts | None:
    """Read how a drafter's drafts went when it was trained; None where that is not recorded.

    Raises:
        RedrafterError: If the file is damaged.
    """
    path = Path(directory) / RECORDED_FILE
    if not path.is_file():
        return None
    values = read_json(path, "a drafter's directory")
    with naming(path):
        return RecordedDrafts.from_dict(values)


def save_recorded(directory: str | Path, recorded: RecordedDrafts) -> None:
    """Write it beside the drafter, atomically."""
    with atomic_path(Path(directory) / RECORDED_FILE) as temporary:
        temporary.write_text(json.dumps(recorded.to_dict(), separators=(",", ":")), "utf-8")


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 of the vocabulary, (token, id) sorted by id; the same for equal vocabularies."""
    entries = sorted(tokenizer.get_vocab().items(), key=lambda entry: (entry[1], entry[0]))
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def check_pair(
    config: DrafterConfig, target: Target, tokenizer: Any, what: str = "The drafter"
) -> None:
    """Refuse a drafter that was trained for another target than this one.

    Args:
        config: The drafter's.
        target: The model.
        tokenizer: The model's.
        what: The drafter's name, for the sentence.

    Raises:
        RedrafterError: If hidden size, vocabulary or recorded tokenizer differ.
    """
    made_for = config.target or {}
    name = made_for.get("name", "another model")
    for size, has, needs in (
        ("hidden size", config.hidden_size, target.hidden_size),
        ("vocabulary size", config.vocab_size, target.vocab_size),
    ):
        if has != needs:
            raise RedrafterError(
                f"{what} was made for {name}, with a {size} of {has}, but this model's is "
                f"{needs}: use the drafter that was trained for this model."
            )
    recorded = made_for.get("tokenizer_hash")
    if recorded is not None and recorded != tokenizer_hash(tokenizer):
        raise RedrafterError(
            f"{what} was made for {name}, whose tokenizer has another vocabulary than this "
            "model's: use the drafter that was trained for this model."
        )


def _quantize_like(
    drafter: Drafter, quantization: dict[str, Any], weights: dict[str, mx.array]
) -> None:
    """Turn those layers into quantised ones whose scales are among the weights."""
    defaults = {k: v for k, v in quantization.items() if not isinstance(v, dict | bool)}

    def predicate(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if f"{path}.scales" not in weights:
            return False
        override = quantization.get(path)
        return override if isinstance(override, dict) else hasattr(module, "to_quantized")

    nn.quantize(drafter, **defaults, class_predicate=predicate)


def _check_tensors(drafter: Drafter, weights: dict[str, mx.array], path: Path) -> None:
    expected = {name: value.shape for name, value in tree_flatten(drafter.parameters())}
    for name, shape in expected.items():
        if name not in weights:
            raise RedrafterError(f"{path} lacks the tensor {name} of shape {tuple(shape)}.")
        if weights[name].shape != shape:
            raise RedrafterError(
                f"{path}: the tensor {name} has shape {tuple(weights[name].shape)}, but its "
                f"config.json asks for {tuple(shape)}."
            )
    if drafter.config.draft_vocab_size is not None:
        check_token_map(weights["draft_tokens"], drafter.config, f"{path}: its")
    extra = sorted(set(weights) - set(expected))
    if extra:
        raise RedrafterError(f"{path} holds tensors its config.json does not explain: {extra[0]}.")
