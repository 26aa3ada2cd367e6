"""How positions are scaled: GGUF's keys and factor tensors as config.json's ``rope_scaling``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..errors import RedrafterError
from .blocks import dequantise
from .file import GGUFModel

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
    if LONG in model.tensors:
        return _longrope(model)
    if FREQUENCIES in model.tensors:
        return _llama3(model, dimensions, base)
    kind = model.text(f"{model.architecture}.rope.scaling.type", "none")
    if kind == "none":
        return None
    factor = model.number("rope.scaling.factor", 1.0)
    if not 0 < factor <= LARGEST_FACTOR:
        raise model.refusal("rope.scaling.factor", factor, "a number above 0 and of some size")
    if kind == "linear":
        return {"type": "linear", "rope_type": "linear", "factor": factor}
    if kind == "yarn":
        original = model.integer("rope.scaling.original_context_length")
        return {
            "type": "yarn",
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original,
        }
    raise RedrafterError(
        f"'{model.path}' scales its positions in a way that is not known here ('{kind}'): convert "
        "the model's original checkpoint instead."
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


def _llama3(model: GGUFModel, dimensions: int, base: float) -> dict[str, Any]:
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
        return {"type": "default", "rope_type": "default"}
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
