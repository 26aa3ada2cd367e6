"""How positions are scaled: GGUF's keys and factor tensors as config.json's ``rope_scaling``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..errors import RedrafterError
from .blocks import dequantise
from .file import LARGEST_INTEGER, GGUFModel

FREQUENCIES = "rope_freqs.weight"
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
FACTOR_TENSORS = (FREQUENCIES, LONG, SHORT)
TOLERANCE = 1e-3
LARGEST_FACTOR = 1e6


def rope_scaling(model: GGUFModel, dimensions: int, base: float) -> dict[str, Any] | None:
    """The ``rope_scaling`` entry that mlx-lm reads, None where positions are not scaled.

    Args:
        model: The file.
        dimensions: Of a head, those that turn.
        base: ``rope_theta``.

    Raises:
        RedrafterError: For scalings that cannot be told from the file, or that mlx-lm has not.
    """
    kind, factor = _kind(model), _factor(model)
    tensor = next((name for name in (LONG, FREQUENCIES) if name in model.tensors), None)
    if tensor is not None:
        if factor != 1.0:
            raise RedrafterError(
                f"'{model.path}' cannot be converted: it scales its positions twice, by "
                f"'{tensor}' and by a factor of {factor:g}, which no model of mlx-lm does."
            )
        return _longrope(model) if tensor == LONG else _llama3(model, dimensions, base)
    _require(model, "rope.scaling.attn_factor", 1.0)
    if kind == "linear":
        return {"type": "linear", "rope_type": "linear", "factor": factor} if factor != 1 else None
    if kind == "yarn":
        return _yarn(model, factor)
    if kind == "none":
        return None
    raise RedrafterError(
        f"'{model.path}' scales its positions in a way that is not known here ('{kind}'): convert "
        "the model's original checkpoint instead."
    )


def _kind(model: GGUFModel) -> str:
    """What scales: in files without a type, of which early ones hold a factor, it is linear."""
    return model.text(f"{model.architecture}.rope.scaling.type", "linear")


def _factor(model: GGUFModel) -> float:
    """How many times as long texts may be; 0 stands for no scaling."""
    if _kind(model) == "none":
        return 1.0
    key = "rope.scaling.factor"
    if not model.has(key) and model.has("rope.scale_linear"):
        key = "rope.scale_linear"  # its name in early files
    factor = model.number(key, 1.0)
    if not 0 <= factor <= LARGEST_FACTOR:
        raise model.refusal(key, factor, "a number above 0 and of some size")
    return factor or 1.0


def _yarn(model: GGUFModel, factor: float) -> dict[str, Any] | None:
    """YaRN with the parameters of its own that mlx-lm knows too.

    The file says by how much queries and keys grow (``attention_factor``), mlx-lm wants the
    multiple of 0.1 ln(factor) by which that exceeds 1.
    """
    if model.number("rope.scaling.yarn_ext_factor", -1.0) >= 0:  # below 0 stands for unsaid
        _require(model, "rope.scaling.yarn_ext_factor", 1.0)
    _require(model, "rope.scaling.yarn_log_multiplier", 0.0)
    scaling: dict[str, Any] = {
        "type": "yarn",
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": model.count(
            "rope.scaling.original_context_length", LARGEST_INTEGER, "a number of tokens"
        ),
    }
    for name in ("beta_fast", "beta_slow"):
        if model.has(f"rope.scaling.yarn_{name}"):
            scaling[name] = model.positive(f"rope.scaling.yarn_{name}")
    key = "rope.scaling.yarn_attn_factor"
    if factor <= 1:
        _require(model, key, 1.0)
        return None
    if model.has(key):
        scaling["mscale"] = (model.positive(key) - 1) / (0.1 * math.log(factor))
    return scaling


def _require(model: GGUFModel, key: str, value: float) -> None:
    """Refuse what mlx-lm's models have no parameter for."""
    if (told := model.number(key, value)) != value:
        raise RedrafterError(
            f"'{model.path}' cannot be converted: it scales its positions with "
            f"'{model.architecture}.{key}' {told:g}, and mlx-lm's models with {value:g} only."
        )


def _longrope(model: GGUFModel) -> dict[str, Any]:
    if SHORT not in model.tensors:
        raise RedrafterError(f"'{model.path}' has '{LONG}' but no '{SHORT}': download it again.")
    return {
        "type": "longrope",
        "rope_type": "longrope",
        "long_factor": _factors(model, LONG).tolist(),
        "short_factor": _factors(model, SHORT).tolist(),
        "original_max_position_embeddings": model.integer("rope.scaling.original_context_length"),
    }


def _factors(model: GGUFModel, name: str) -> np.ndarray[Any, Any]:
    return dequantise(model.tensors[name]).astype(np.float64).reshape(-1)


def _llama3(model: GGUFModel, dimensions: int, base: float) -> dict[str, Any] | None:
    """Llama 3's scaling, recovered from the factors that it gives each frequency.

    Wavelengths above L get the largest factor f, those below H none, and in between 1 / factor is
    (1 - s) / f + s with s linear in 1 / wavelength, 0 at L and 1 at H. Only L and H matter; they
    are told by the ``original_max_position_embeddings`` C and two ratios, L = C / low and H =
    C / high, of which ``low`` can be taken as 1.
    """
    factors = _factors(model, FREQUENCIES)
    if len(factors) != dimensions // 2 or not np.isfinite(factors).all() or (factors <= 0).any():
        raise _unknown(model)
    largest = float(factors.max())
    if largest == 1.0:
        return None
    inverse = base ** (-np.arange(0, dimensions, 2) / dimensions) / (2 * math.pi)
    long = float(round(largest, 4))
    for original, high in _candidates(factors, inverse, long):
        found = {
            "type": "llama3",
            "rope_type": "llama3",
            "factor": long,
            "low_freq_factor": 1.0,
            "high_freq_factor": high,
            "original_max_position_embeddings": original,
        }
        if np.allclose(llama3_factors(found, inverse), factors, rtol=TOLERANCE):
            return found
    raise _unknown(model)


def _candidates(
    factors: np.ndarray[Any, Any], inverse: np.ndarray[Any, Any], largest: float
) -> list[tuple[int, float]]:
    """(original context, high_freq_factor) to try: Llama's own, then what the factors solve for."""
    candidates = [(8192, 4.0)]
    between = (factors > 1 + 1e-6) & (factors < largest * (1 - 1e-6))
    if between.sum() >= 2:
        smooth = (1 / factors[between] - 1 / largest) / (1 - 1 / largest)
        slope, start = np.polyfit(inverse[between], smooth, 1)  # s = (C / w - 1) / (high - 1)
        if start < 0 < slope:
            candidates.append((round(-slope / start), float(1 - 1 / start)))
    return candidates


def llama3_factors(scaling: dict[str, Any], inverse: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Factors by which Llama 3's scaling divides frequencies.

    Args:
        scaling: A ``rope_scaling`` entry of the type "llama3".
        inverse: 1 / wavelength of each frequency, in 1 / tokens.
    """
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * inverse
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return 1 / ((1 - smooth) / scaling["factor"] + smooth)


def _unknown(model: GGUFModel) -> RedrafterError:
    return RedrafterError(
        f"'{model.path}' holds rotary factors ('{FREQUENCIES}') that are not Llama 3's scaling: "
        "convert the model's original checkpoint instead."
    )
