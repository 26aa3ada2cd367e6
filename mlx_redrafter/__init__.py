"""Recurrent drafter speculative decoding on MLX: the model's own words, sooner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._lazy import names_on_demand

# mlx binds its BLAS symbols when it is first imported, so OpenBLAS has to come before.
from .system.blas import preload_openblas

blas_loaded: bool = preload_openblas()

if TYPE_CHECKING:
    from .cache.prompt_cache import PromptCache
    from .cache.quantized import CacheOptions
    from .conversion import convert
    from .drafting.config import DrafterConfig
    from .drafting.drafter import Drafter
    from .drafting.recurrent_drafter import RecurrentDrafter
    from .drafting.shape import BeamShape
    from .drafting.source import DraftInput, DraftSource
    from .engine.batch_decoder import BatchDecoder
    from .engine.config import DecodingConfig
    from .engine.decode import decode
    from .engine.model import SpeculativeModel
    from .engine.statistics import AcceptanceStats
    from .engine.step import DecodedToken, StepRecord
    from .errors import RedrafterError
    from .planning.planner import Planner
    from .sampling import SamplingConfig
    from .target.target import Target
    from .text.batch_generate import (
        BatchResponse,
        BatchStats,
        batch_generate,
        stream_batch_generate,
    )
    from .text.drafter_files import load_drafter, save_drafter
    from .text.generate import generate, stream_generate
    from .text.loading import load
    from .text.passages import ParsedAnswer, parse_answer
    from .text.responses import GenerationResponse
    from .training import train_drafter
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
    "DraftInput",
    "DraftSource",
    "DraftTree",
    "Drafter",
    "DrafterConfig",
    "GenerationResponse",
    "HostTree",
    "ParsedAnswer",
    "Planner",
    "PromptCache",
    "RecurrentDrafter",
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
    "parse_answer",
    "save_drafter",
    "stream_batch_generate",
    "stream_generate",
    "train_drafter",
]

# mlx-lm takes seconds to import, so the names come when they are first used: a command line's
# --help and its complaints about flags need none of them.
_HOMES = {
    ".text.batch_generate": (
        "BatchResponse",
        "BatchStats",
        "batch_generate",
        "stream_batch_generate",
    ),
    ".engine.batch_decoder": ("BatchDecoder",),
    ".drafting.shape": ("BeamShape",),
    ".drafting.source": ("DraftSource", "DraftInput"),
    ".cache.prompt_cache": ("PromptCache",),
    ".conversion": ("convert",),
    ".engine.config": ("DecodingConfig",),
    ".engine.decode": ("decode",),
    ".training": ("train_drafter",),
    ".drafting.config": ("DrafterConfig",),
    ".drafting.drafter": ("Drafter",),
    ".drafting.recurrent_drafter": ("RecurrentDrafter",),
    ".errors": ("RedrafterError",),
    ".text.generate": ("generate", "stream_generate"),
    ".text.passages": ("ParsedAnswer", "parse_answer"),
    ".text.responses": ("GenerationResponse",),
    ".text.loading": ("load",),
    ".text.drafter_files": ("load_drafter", "save_drafter"),
    ".engine.model": ("SpeculativeModel",),
    ".planning.planner": ("Planner",),
    ".cache.quantized": ("CacheOptions",),
    ".sampling": ("SamplingConfig",),
    ".engine.statistics": ("AcceptanceStats",),
    ".engine.step": (
        "DecodedToken",
        "StepRecord",
    ),
    ".target.target": ("Target",),
    ".tree": (
        "DraftTree",
        "HostTree",
        "accept",
    ),
}
__getattr__, __dir__ = names_on_demand(__name__, _HOMES)
