"""Loading a model at another precision than the one it is stored in."""

from __future__ import annotations

import contextlib
import gc
import io

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load as load_target
from mlx_lm.utils import quantize_model

from ..conversion.drafter_part import quantise_drafter
from ..conversion.options import Options
from ..drafter import Drafter
from ..errors import RedrafterError
from ..loading import DRAFTER_DIRECTORY, check_pair, load, load_drafter, resolve_path
from ..model import SpeculativeModel, on_gpu
from ..target import Target
from .names import BITS, DTYPES, STORED

GROUP_SIZE = 64


def load_at(
    model: str, drafter: str | None, precision: str
) -> tuple[SpeculativeModel, TokenizerWrapper]:
    """Load a target and its drafter at a precision.

    Args:
        model: A directory or Hub repo.
        drafter: A drafter other than the bundle's own.
        precision: "stored" as :func:`mlx_redrafter.load` has it; a dtype; or "8bit" and "4bit",
            quantised here and now as ``convert.py -q`` does it.

    Raises:
        RedrafterError: If something is missing, or a quantised model is to be quantised again.
    """
    if precision == STORED:
        return load(model, drafter)
    if precision in DTYPES:
        return load(model, drafter, dtype=getattr(mx, precision))
    return _load_quantised(model, drafter, BITS[precision])


def is_quantised(parameters: object) -> bool:
    """Whether quantised layers are among a module's parameters."""
    return any(name.endswith("scales") for name, _ in tree_flatten(parameters))


def _load_quantised(
    name: str, drafter: str | None, bits: int
) -> tuple[SpeculativeModel, TokenizerWrapper]:
    checked, tokenizer = load(name, drafter)  # everything that can be wrong is told here
    model, head = checked.target.model, checked.drafter
    if is_quantised(model.parameters()):
        raise RedrafterError(
            f"{name} is quantised already, and quantising it again would measure another model: "
            f"ask for the precision '{STORED}', or pass the unquantised model."
        )
    # Loaded anew: the layers of a target that is in use cannot be exchanged under it.
    del checked, model
    gc.collect()
    mx.clear_cache()
    path = resolve_path(name)
    plain, _, config = load_target(str(path), lazy=True, return_config=True)
    if not on_gpu():
        plain.set_dtype(mx.float32)
    with contextlib.redirect_stdout(io.StringIO()):  # mlx-lm prints a line of its own
        plain, _ = quantize_model(plain, config, GROUP_SIZE, bits)
    target = Target(plain)
    if isinstance(head, Drafter):
        head = load_drafter(resolve_path(drafter) if drafter else path / DRAFTER_DIRECTORY)
        check_pair(head.config, target, tokenizer)
        if not on_gpu():
            head.set_dtype(mx.float32)
        quantise_drafter(head, Options(quantize=True, q_bits=bits))
    mx.eval(plain.parameters(), head.parameters() if isinstance(head, Drafter) else [])
    return SpeculativeModel(target, head, name=path.name), tokenizer
