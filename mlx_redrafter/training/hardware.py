"""What a training run takes from the machine where it is not told: sizes, rate, memory."""

from __future__ import annotations

import mlx.core as mx
from mlx_lm.utils import dequantize_model, get_total_parameters

from ..drafting.config import DrafterConfig
from ..engine.model import SpeculativeModel
from ..system.device import on_gpu
from ..system.limits import usable_memory

IN_MEMORY = 4 * 2**30  # bytes of features that are kept in memory without being asked
SHARE_OF_FEATURES = 0.45  # of a graphics card's own memory
SHARE_OF_PASS = 1 / 8  # of a GPU's memory, for the arrays of one forward and backward pass
SHARE_OF_TARGET = 1 / 4  # of a graphics card's memory, for a target that is unpacked
SHARE_OF_TARGET_ON_CPU = 1 / 2  # of the memory that this process may use

FEWEST_POSITIONS, MOST_POSITIONS = 512, 16384
BASE_RATE, HIGHEST_RATE = 1e-3, 2e-3


def gpu_memory() -> int:
    """Bytes of the GPU's memory, or of what it may use of the machine's; 0 on a CPU."""
    if not on_gpu():
        return 0
    info = mx.device_info()
    return int(info.get("max_recommended_working_set_size") or info.get("total_memory") or 0)


def _has_own_memory() -> bool:
    return on_gpu() and mx.cuda.is_available()


def kept_bytes() -> int:
    """Bytes of features that are kept in memory without being asked."""
    return max(IN_MEMORY, int(SHARE_OF_FEATURES * gpu_memory()) if _has_own_memory() else 0)


def pass_bytes(config: DrafterConfig, unroll: int) -> int:
    """Bytes of a forward and backward pass over one position, at most about."""
    inner = 2 * (config.num_draft_layers + 1) * config.exit_dim
    return 4 * unroll * (4 * config.head_size + 2 * config.hidden_size + inner)


def usual_positions(config: DrafterConfig, unroll: int) -> int:
    """Positions of a forward and backward pass: on a GPU as many as fill it, a power of two.

    A CPU is busy with the fewest; more of them would only make steps longer.
    """
    room = SHARE_OF_PASS * gpu_memory() / pass_bytes(config, unroll)
    fitting = 1 << max(0, int(room).bit_length() - 1)
    return min(max(fitting, FEWEST_POSITIONS), MOST_POSITIONS)


def usual_learning_rate(positions: int) -> float:
    """Peak for steps over so many positions: it grows as the noise of their gradient shrinks."""
    return float(min(BASE_RATE * max(1.0, positions / FEWEST_POSITIONS) ** 0.5, HIGHEST_RATE))


def is_packed(model: SpeculativeModel) -> bool:
    """Whether weights of the target are quantised."""
    return any("scales" in module for _, module in model.target.model.named_modules())


def unpacked_bytes(model: SpeculativeModel) -> int:
    """Bytes of the target's weights once they are unpacked."""
    size = model.target.dtype.size if on_gpu() else mx.float32.size
    return int(get_total_parameters(model.target.model)) * size


def _room_unpacked() -> float:
    """Bytes that an unpacked target may take; none where packed ones serve as well.

    A share of all memory and not of what is free: a run that goes on has to decide as it began.
    """
    if _has_own_memory():
        return SHARE_OF_TARGET * gpu_memory()
    return 0 if on_gpu() else SHARE_OF_TARGET_ON_CPU * (usable_memory() or 0)


def unpacked(model: SpeculativeModel) -> SpeculativeModel | None:
    """The same model with its layers unpacked, where that is faster and there is room; else None.

    Over thousands of tokens mlx unpacks every matrix anew on CUDA, and has no kernels for some. A
    CPU takes a hundred times as long for a product with packed weights, whatever its size.
    """
    target = model.target.model
    if not is_packed(model) or unpacked_bytes(model) > _room_unpacked():
        return None
    dequantize_model(target)
    if not on_gpu():
        target.set_dtype(mx.float32)  # some kinds of blocks unpack to bfloat16
    mx.eval(target.parameters())
    # Anew, since unpacked layers are other modules, which nothing follows yet.
    return SpeculativeModel(target, name=model.name, config=model.config)
