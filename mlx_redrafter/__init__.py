"""Recurrent drafter speculative decoding on MLX: the model's own words, sooner."""

# mlx binds its BLAS symbols when it is first imported, so OpenBLAS has to come before.
from .blas import preload_openblas

blas_loaded: bool = preload_openblas()

from .beam import BeamShape, DraftSource, DraftState  # noqa: E402
from .cache import PromptCache  # noqa: E402
from .decoding import DecodedToken, DecodingConfig, StepRecord, decode  # noqa: E402
from .drafter import Drafter, DrafterConfig  # noqa: E402
from .errors import RedrafterError  # noqa: E402
from .generation import GenerationResponse, generate, stream_generate  # noqa: E402
from .loading import load, load_drafter, save_drafter  # noqa: E402
from .model import SpeculativeModel  # noqa: E402
from .sampling import SamplingConfig  # noqa: E402
from .statistics import AcceptanceStats  # noqa: E402
from .target import Target  # noqa: E402
from .tree import DraftTree, HostTree, accept  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "AcceptanceStats",
    "BeamShape",
    "DecodedToken",
    "DecodingConfig",
    "DraftSource",
    "DraftState",
    "DraftTree",
    "Drafter",
    "DrafterConfig",
    "GenerationResponse",
    "HostTree",
    "PromptCache",
    "RedrafterError",
    "SamplingConfig",
    "SpeculativeModel",
    "StepRecord",
    "Target",
    "accept",
    "blas_loaded",
    "decode",
    "generate",
    "load",
    "load_drafter",
    "save_drafter",
    "stream_generate",
]
