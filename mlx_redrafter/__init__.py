"""Recurrent drafter speculative decoding on MLX: the model's own words, sooner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._lazy import names_on_demand

# mlx binds its BLAS symbols when it is first imported, so OpenBLAS has to come before.
from .blas import preload_openblas

blas_loaded: bool = preload_openblas()

if TYPE_CHECKING:
    from .batch_generation import (
        BatchResponse,
        BatchStats,
        batch_generate,
        stream_batch_generate,
    )
    from .batching import BatchDecoder
    from .beam import BeamShape, DraftSource, DraftState
    from .cache import PromptCache
    from .conversion import convert
    from .decoding import DecodingConfig, decode
    from .distillation import train_drafter
    from .drafter import Drafter, DrafterConfig
    from .errors import RedrafterError
    from .generation import GenerationResponse, generate, stream_generate
    from .loading import load, load_drafter, save_drafter
    from .model import SpeculativeModel
    from .planner import Planner
    from .quantized_cache import CacheOptions
    from .sampling import SamplingConfig
    from .statistics import AcceptanceStats
    from .steps import DecodedToken, StepRecord
    from .target import Target
    from .tree import DraftTree, HostTree, accept

__version__ = "0.1.0"

__all__ = [
    "AcceptanceStats",
    "BatchDecoder",
    "BatchResponse",
    "BatchStats",
    "BeamShape",
    "CacheOptions",
    "DecodedToken",
    "DecodingConfig",
    "DraftSource",
    "DraftState",
    "DraftTree",
    "Drafter",
    "DrafterConfig",
    "GenerationResponse",
    "HostTree",
    "Planner",
    "PromptCache",
    "RedrafterError",
    "SamplingConfig",
    "SpeculativeModel",
    "StepRecord",
    "Target",
    "accept",
    "batch_generate",
    "blas_loaded",
    "convert",
    "decode",
    "generate",
    "load",
    "load_drafter",
    "save_drafter",
    "stream_batch_generate",
    "stream_generate",
    "train_drafter",
]

# mlx-lm takes seconds to import, so the names come when they are first used: a command line's
# --help and its complaints about flags need none of them.
_HOMES = {
    ".batch_generation": (
        "BatchResponse",
        "BatchStats",
        "batch_generate",
        "stream_batch_generate",
    ),
    ".batching": ("BatchDecoder",),
    ".beam": (
        "BeamShape",
        "DraftSource",
        "DraftState",
    ),
    ".cache": ("PromptCache",),
    ".conversion": ("convert",),
    ".decoding": (
        "DecodingConfig",
        "decode",
    ),
    ".distillation": ("train_drafter",),
    ".drafter": (
        "Drafter",
        "DrafterConfig",
    ),
    ".errors": ("RedrafterError",),
    ".generation": (
        "GenerationResponse",
        "generate",
        "stream_generate",
    ),
    ".loading": (
        "load",
        "load_drafter",
        "save_drafter",
    ),
    ".model": ("SpeculativeModel",),
    ".planner": ("Planner",),
    ".quantized_cache": ("CacheOptions",),
    ".sampling": ("SamplingConfig",),
    ".statistics": ("AcceptanceStats",),
    ".steps": (
        "DecodedToken",
        "StepRecord",
    ),
    ".target": ("Target",),
    ".tree": (
        "DraftTree",
        "HostTree",
        "accept",
    ),
}
__getattr__, __dir__ = names_on_demand(__name__, _HOMES)
