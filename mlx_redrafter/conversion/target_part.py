"""The target's half of a conversion: mlx-lm's own loading, casting and quantisation."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.convert import MODEL_CONVERSION_DTYPES, mixed_quant_predicate_builder
from mlx_lm.utils import (
    _get_classes,
    dequantize_model,
    get_total_parameters,
    load_model,
    load_tokenizer,
    quantize_model,
)

from ..drafting.config import MODEL_TYPE
from ..errors import RedrafterError
from ..target.casting import cast_weights, quantised_layers
from ..text.boundary import reading
from ..text.boundary import reason as reason_of
from ..text.bounds import check_counts
from ..text.type_entry import naming_type
from .configs import RIGHT_ONE, check_objects, check_own_code, naming_field, read_config, wrong_kind
from .options import MODES, Options
from .report import PartReport
from .tensors import DRAFTER_PREFIX, check_names

# Apple's training module holds the language model as `llm` beside the `drafter`.
WHOLE_PREFIX = "llm."


@dataclass
class TargetPart:
    """A target on its way into a bundle; its arrays are not evaluated."""

    model: nn.Module
    config: dict[str, Any]
    tokenizer: Any
    name: str
    report: PartReport | None = None
    notes: tuple[str, ...] = ()


def own_weights(weights: dict[str, Any]) -> dict[str, Any]:
    """The target's tensors of a checkpoint that may hold a drafter too, under plain names."""
    own = {k: v for k, v in weights.items() if not k.startswith(DRAFTER_PREFIX)}
    if len(own) < len(weights) and all(k.startswith(WHOLE_PREFIX) for k in own):
        own = {k.removeprefix(WHOLE_PREFIX): v for k, v in own.items()}
    return own


class _Checked:
    """Mixed into mlx-lm's model class while loading, so that bad checkpoints are told precisely."""

    def sanitize(self, weights: dict[str, Any]) -> dict[str, Any]:
        weights = own_weights(weights)
        inherited = getattr(super(), "sanitize", None)
        return weights if inherited is None else inherited(weights)

    def load_weights(self, weights: list[tuple[str, mx.array]], strict: bool = True) -> Any:
        expected = tree_flatten(self.parameters())  # type: ignore[attr-defined]
        _check_numbers(dict(expected), dict(weights))
        check_names(
            {name: tuple(array.shape) for name, array in expected},
            {name: tuple(array.shape) for name, array in weights},
            "The target",
            "its config.json",
        )
        return super().load_weights(weights, strict)  # type: ignore[misc]


def _check_numbers(expected: dict[str, mx.array], weights: dict[str, mx.array]) -> None:
    """Refuse whole numbers where a model computes with fractions, which are no weights."""
    for name, array in weights.items():
        wanted = expected.get(name)
        if wanted is None or not mx.issubdtype(wanted.dtype, mx.floating):
            continue
        if not mx.issubdtype(array.dtype, mx.floating):
            raise RedrafterError(
                f"The target's tensor '{name}' holds whole numbers ({str(array.dtype)[9:]}) where "
                "weights are expected: the checkpoint is damaged, or quantised in a way that "
                "mlx-lm does not know."
            )


def _checked_classes(config: dict[str, Any]) -> tuple[type, type]:
    try:
        model_class, args_class = _get_classes(config)
    except ValueError as error:
        raise RedrafterError(
            f"mlx-lm does not know the model type '{config['model_type']}': upgrade mlx-lm or use "
            "another target."
        ) from error
    checked = type(model_class.__name__, (_Checked, model_class), {})
    checked.__module__ = model_class.__module__
    return checked, args_class


def load_target(
    directory: Path, name: str, trust_remote_code: bool = False, tensors: int | None = None
) -> TargetPart:
    """Open a checkpoint as mlx-lm does, lazily.

    Args:
        directory: Holds config.json, model*.safetensors and the tokenizer.
        name: What to call it.
        trust_remote_code: Whether Python files of the checkpoint may be run.
        tensors: How many its files hold, so that no model of more layers is built.

    Raises:
        RedrafterError: If configuration, tensors or tokenizer are incomplete or unknown to mlx-lm.
    """
    values = read_config(directory / "config.json", "a model")
    kind = values.get("model_type")
    if not isinstance(kind, str):
        raise RedrafterError(
            "The target's config.json has no model_type, so the model cannot be built: "
            "use the config.json that save_pretrained wrote."
        )
    if kind == MODEL_TYPE:
        raise RedrafterError(
            f"'{directory}' is a drafter, not a target: pass it as --drafter, with its target as "
            "--hf-path, or its target's bundle as --mlx-path."
        )
    check_objects(values, directory / "config.json")
    check_own_code(values, directory / "config.json", trust_remote_code)
    if tensors is not None:
        check_counts(values, tensors, directory / "config.json")
    try:
        model, config = load_model(
            directory,
            lazy=True,
            get_model_classes=_checked_classes,
            trust_remote_code=trust_remote_code,
        )
    except RedrafterError:
        raise
    except Exception as error:  # of whatever kind, it is the checkpoint's doing
        raise RedrafterError(_load_failure(values, error)) from error
    with naming_field(values):
        tokenizer = _tokenizer(directory, config, trust_remote_code)
    return TargetPart(model, config, tokenizer, name)


def _load_failure(values: dict[str, Any], error: Exception) -> str:
    reason = reason_of(error)
    if isinstance(error, KeyError):
        reason = f"missing key {error}"
    if isinstance(error, TypeError) and "missing" in reason and "argument" in reason:
        reason = "missing keys: " + reason.partition(": ")[2]
    if (entry := _wrong_entry(values)) is not None:
        reason = f"{entry}; {reason}"
    return (
        f"mlx-lm cannot build the target ('{values['model_type']}') from its config.json "
        f"({reason}): {RIGHT_ONE}."
    )


def _wrong_entry(values: dict[str, Any]) -> str | None:
    """What is likely to be wrong with a configuration that no model could be built from."""
    if values.get("text_config", {}) is None:
        return "text_config is null"
    with contextlib.suppress(Exception):  # a class without plain declarations explains nothing
        return wrong_kind(values, _get_classes(values)[1])
    return None


def _tokenizer(directory: Path, config: dict[str, Any], trust_remote_code: bool) -> Any:
    remedy = "put tokenizer.json or tokenizer.model and tokenizer_config.json beside config.json"
    blame = naming_type(config, directory / "config.json")
    with blame, reading("The target's tokenizer", remedy), _naming_the_flag():
        return load_tokenizer(
            directory,
            {"trust_remote_code": trust_remote_code},
            eos_token_ids=config.get("eos_token_id"),
        )


@contextmanager
def _naming_the_flag() -> Iterator[None]:
    """Name the flag where transformers names its own argument."""
    try:
        yield
    except (ValueError, ImportError) as error:
        if "trust_remote_code" not in str(error):
            raise
        raise RedrafterError(
            "The target's tokenizer comes with Python files of its own, which are not run unless "
            "you trust them: pass --trust-remote-code."
        ) from error


def transform(part: TargetPart, options: Options, kept: bool = False) -> TargetPart:
    """Cast, quantise or dequantise as mlx_lm.convert does, in its order; nothing is evaluated.

    Args:
        part: A loaded target.
        options: What is asked for.
        kept: Whether a target that is quantised already may stay as it is.

    Returns:
        The target with its report filled in.

    Raises:
        RedrafterError: If it cannot be quantised as asked.
    """
    before = model_bytes(part.model)
    predicate: Callable[..., Any] | None = None
    if options.quant_predicate is not None:
        try:
            predicate = mixed_quant_predicate_builder(
                options.quant_predicate, part.model, options.q_group_size or 64
            )
        except ValueError as error:
            raise RedrafterError(
                f"--quant-predicate {options.quant_predicate} does not fit this target ({error}): "
                "leave it out."
            ) from None
    _cast(part, options.dtype)
    left: list[str] = []
    if options.quantize:
        packed = quantised_layers(part.model)
        part.model, part.config = quantise(
            part.model,
            part.config,
            options.q_group_size,
            options.q_bits,
            mode=options.q_mode,
            predicate=predicate,
        )
        if packed and quantised_layers(part.model) == packed:
            part.notes = (_already_quantised(part.config["quantization"], options, kept),)
        left = _left_out(part.model, part.config["quantization"]["group_size"])
    if options.dequantize:
        part.config.pop("quantization", None)
        part.config.pop("quantization_config", None)
        part.model = dequantize_model(part.model)
    part.report = PartReport(
        name=part.name,
        bytes_before=before,
        bytes_after=model_bytes(part.model),
        parameters=get_total_parameters(part.model),
        quantization=part.config.get("quantization"),
        full_precision=tuple(left),
    )
    return part


def _already_quantised(entry: dict[str, Any], options: Options, kept: bool) -> str:
    """What to tell where -q left the target as it was, if that may be."""
    bits, mode = entry.get("bits"), entry.get("mode", "affine")
    how = f"{bits} bits" if mode == "affine" else f"{mode}"
    if not kept:
        raise RedrafterError(
            f"The target is quantised already ({how}), so -q would change nothing: leave -q out, "
            "or turn it back with -d first and quantise that."
        )
    asked = (options.q_bits or MODES[options.q_mode][1][0], options.q_mode)
    if options.mlx_path is None and asked != (bits, mode):
        raise RedrafterError(
            f"The target is quantised already ({how}) and would stay as it is, which the bundle's "
            "usual name would not say: name it with --mlx-path."
        )
    return f"The target is quantised already ({how}) and was kept as it is."


def quantise(
    model: nn.Module,
    config: dict[str, Any],
    group_size: int | None,
    bits: int | None,
    *,
    mode: str = "affine",
    predicate: Callable[..., Any] | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """mlx-lm's quantisation, with its arguments; the model's layers are exchanged in place.

    Raises:
        RedrafterError: If mlx-lm cannot quantise a layer like this, or at all.
    """
    try:
        # mlx-lm prints its own summary; the report carries the same numbers.
        with contextlib.redirect_stdout(io.StringIO()):
            made: tuple[nn.Module, dict[str, Any]] = quantize_model(
                model, config, group_size, bits, mode=mode, quant_predicate=predicate
            )
            return made
    except ValueError as error:
        reason = " ".join(str(error).split())
        # A recipe finds a layer's number at the same place in every name.
        remedy = "choose another --q-group-size or --q-mode"
        if predicate is not None:
            remedy = "leave --quant-predicate out, or choose another --q-group-size"
        raise RedrafterError(
            f"The target cannot be quantised like this ({reason}): {remedy}."
        ) from error
    except TypeError as error:  # a layer of mlx-lm's that falls short of what mlx asks of it
        raise RedrafterError(
            f"mlx-lm has layers of this target's type ({config.get('model_type')}) that it cannot "
            f"quantise ({reason_of(error)}): use the target in full precision."
        ) from error


def _cast(part: TargetPart, dtype: str | None) -> None:
    if dtype is None:
        dtype = part.config.get("torch_dtype")
    if dtype is None and (text := part.config.get("text_config")):
        dtype = text.get("dtype")
    if dtype not in MODEL_CONVERSION_DTYPES:
        return
    cast_weights(part.model, getattr(mx, str(dtype)))


def _left_out(model: nn.Module, group_size: int) -> list[str]:
    """Layers whose input dimension the group size does not divide."""
    return [
        name
        for name, module in model.named_modules()
        if hasattr(module, "to_quantized") and module.weight.shape[-1] % group_size
    ]


def model_bytes(model: nn.Module) -> int:
    """Bytes of all parameters, evaluated or not."""
    return sum(array.nbytes for _, array in tree_flatten(model.parameters()))
