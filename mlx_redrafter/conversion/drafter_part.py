"""The drafter's half of a conversion: reading, inferring, checking, quantising."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import dequantize_model, get_total_parameters

from ..drafting.config import MODEL_TYPE, DrafterConfig
from ..drafting.drafter import Drafter
from ..drafting.kinds import drafter_of
from ..drafting.token_map import check_token_map
from ..errors import RedrafterError
from ..target.casting import quantised_layers
from ..text.bounds import check_counts
from ..text.drafter_files import load_drafter
from ..text.drafter_pair import check_note
from .configs import read_config
from .options import Options
from .report import PartReport
from .target_part import model_bytes
from .tensors import DRAFTER_PREFIX, TensorInfo, check_names, check_types

WHAT = "The drafter"
# The paper's code trains without it; checkpoints of its early versions still carry one.
UNUSED = re.compile(r"^emb_norm(\.|$)")
TOKEN_MAP = "draft_tokens"
SMALL_LAYERS = ("rnn_u", "rnn_w", "input_proj")
TOKEN_TYPES = ("I32", "I64", "U32")


@dataclass(frozen=True)
class DrafterSource:
    """A drafter's tensors, found but not read.

    Attributes:
        name: What to call it.
        tensors: By their names in the head, the ``drafter.`` prefix and unused ones taken off.
        prefix: What stands before those names in the files.
        config: config.json's values, None where it is to be inferred.
        notes: What was left out.
        directory: Where its config.json is, or would be.
    """

    name: str
    tensors: dict[str, TensorInfo]
    prefix: str
    config: dict[str, Any] | None
    notes: tuple[str, ...] = ()
    directory: Path = Path()


def find_drafter(
    name: str, tensors: Mapping[str, TensorInfo], directory: Path, config_needed: bool
) -> DrafterSource:
    """Pick out the drafter of a checkpoint.

    Args:
        name: What to call it.
        tensors: All tensors of the files.
        directory: Where its config.json is looked for.
        config_needed: Whether a missing config.json is an error instead of a reason to infer.

    Raises:
        RedrafterError: If config.json is missing though needed, or another model's.
    """
    prefix = DRAFTER_PREFIX if any(k.startswith(DRAFTER_PREFIX) for k in tensors) else ""
    own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    unused = sorted(k for k in own if UNUSED.match(k))
    notes = tuple(f"'{k}' of the drafter is not used by the head and was left out." for k in unused)
    for key in unused:
        del own[key]
    config = None
    path = directory / "config.json"
    if not prefix and (config_needed or path.is_file()):
        config = read_config(path, "a drafter")
        if not config_needed and config.get("model_type") != MODEL_TYPE:
            config = None  # the target's, of which the file is a part
    return DrafterSource(name, own, prefix, config, notes, directory)


def infer_config(tensors: Mapping[str, TensorInfo], vocab_size: int | None) -> DrafterConfig:
    """The configuration that the tensors' shapes allow.

    The head's blocks and rows are numbered in one list; its input is [hidden ; state], projected
    where ``input_proj`` is there; so the shapes leave nothing open but the vocabulary of a head
    over frequent tokens, which is the target's.

    Args:
        tensors: The drafter's tensors.
        vocab_size: The target's vocabulary.

    Raises:
        RedrafterError: If the tensors are not a recurrent drafter's.
    """
    rows = [re.fullmatch(r"lm_head\.(\d+)\.weight", name) for name in tensors]
    last = max((int(m.group(1)) for m in rows if m), default=None)
    if last is None or len(tensors[f"lm_head.{last}.weight"].shape) != 2:
        raise RedrafterError(
            "The file holds no output rows 'lm_head.N.weight', so it is not a recurrent drafter: "
            "pass the drafter's own checkpoint."
        )
    head_size, exit_dim = tensors[f"lm_head.{last}.weight"].shape
    projection = tensors.get("input_proj.weight")
    width = projection.shape[-1] if projection else exit_dim
    if width % 2:
        raise RedrafterError(
            f"The head's input is {width} wide, which is not twice a hidden size: "
            "pass the drafter's config.json beside its weights."
        )
    compact = TOKEN_MAP in tensors
    if compact and vocab_size is None:
        raise RedrafterError(
            "A head over frequent tokens does not tell the target's vocabulary: pass its "
            "config.json, or --hf-path together with --drafter."
        )
    return DrafterConfig(
        hidden_size=width // 2,
        vocab_size=vocab_size if compact and vocab_size else head_size,
        exit_dim=exit_dim,
        num_draft_layers=last,
        rnn="rnn_u.weight" in tensors or "rnn_w.weight" in tensors,
        draft_vocab_size=head_size if compact else None,
    )


def check_drafter(source: DrafterSource, config: DrafterConfig) -> None:
    """Compare names, shapes and types with the configuration; no data is read.

    Raises:
        RedrafterError: Naming the tensor, what was expected and what was found.
    """
    check_counts(config.to_dict(), len(source.tensors), source.directory / "config.json")
    expected = {k: tuple(v.shape) for k, v in tree_flatten(drafter_of(config).parameters())}
    because = "a head made from its shapes" if source.config is None else _because(config)
    found = {k: info.shape for k, info in source.tensors.items()}
    check_names(expected, found, WHAT, because)
    floats = {k: info for k, info in source.tensors.items() if k != TOKEN_MAP}
    check_types(floats, WHAT)
    check_types({k: v for k, v in source.tensors.items() if k not in floats}, WHAT, TOKEN_TYPES)


def _because(config: DrafterConfig) -> str:
    return (
        f"config.json (hidden_size {config.hidden_size}, exit_dim {config.exit_dim}, vocab_size "
        f"{config.vocab_size}, num_draft_layers {config.num_draft_layers}, "
        f"rnn {str(config.rnn).lower()})"
    )


def build_drafter(source: DrafterSource, config: DrafterConfig) -> Drafter:
    """Load a source into a head and check it; arrays stay unread until they are needed.

    Args:
        source: Where its tensors are.
        config: The head's configuration.

    Raises:
        RedrafterError: As in ``check_drafter``, or if the tensors were written with another
            configuration, or the head's token map is not a sorted list of target tokens.
    """
    if config.quantization is not None:
        # Only this package writes quantised heads, so its own loader reads and checks them.
        return load_drafter(source.directory)
    check_drafter(source, config)
    weights: list[tuple[str, mx.array]] = []
    for path in dict.fromkeys(info.file for info in source.tensors.values()):
        loaded: Any = mx.load(str(path), return_metadata=True)
        arrays, metadata = loaded
        if source.config is not None:
            check_note(path, metadata, config)
        for stored, array in arrays.items():
            name = stored.removeprefix(source.prefix)
            if stored.startswith(source.prefix) and name in source.tensors:
                weights.append((name, array.astype(mx.int32) if name == TOKEN_MAP else array))
    drafter = drafter_of(config)
    drafter.load_weights(weights)
    if config.draft_vocab_size is not None:
        check_token_map(drafter.draft_tokens, config)
    return drafter


def prepare_drafter(drafter: Drafter, options: Options) -> tuple[Drafter, tuple[str, ...]]:
    """Dequantise, cast and quantise as asked; arrays stay unread.

    Returns:
        The head, and the layers left in full precision.

    Raises:
        RedrafterError: If bits are asked for and the drafter is quantised already.
    """
    if options.dequantize and drafter.config.quantization is not None:
        drafter = dequantize_model(drafter)
        drafter.config = replace(drafter.config, quantization=None)
    if options.dtype is not None:
        drafter.set_dtype(getattr(mx, options.dtype))
    return drafter, quantise_drafter(drafter, options)


def quantise_drafter(drafter: Drafter, options: Options) -> tuple[str, ...]:
    """Quantise the head in place and note how in its config.

    Residual blocks and output rows get ``options.drafter_bits``; rnn_u, rnn_w and input_proj, whose
    errors the recurrence carries from token to token, get ``options.drafter_small_bits``.

    Returns:
        Layers left in full precision because the group size does not divide their input dimension.

    Raises:
        RedrafterError: If bits are asked for and the drafter is quantised already.
    """
    bits, small, size = (
        options.drafter_bits,
        options.drafter_small_bits,
        options.drafter_group_size,
    )
    if bits is None and small is None:
        return ()
    if drafter.config.quantization is not None:
        if options.drafter_q_bits is None and options.drafter_rnn_q_bits is None:
            return ()  # -q was meant for the target; the drafter stays as it is
        raise RedrafterError(
            "The drafter is quantised already, and quantising it again would lose more: convert "
            "the original, or keep it as it is with --drafter-q-bits left out."
        )
    left: list[str] = []
    entry: dict[str, Any] = {"group_size": size, "bits": bits or small, "mode": "affine"}

    def choose(path: str, module: nn.Module) -> bool | dict[str, Any]:
        wanted = small if path in SMALL_LAYERS else bits
        if wanted is None or not hasattr(module, "to_quantized"):
            return False
        if module.weight.shape[-1] % size:
            left.append(path)
            return False
        own = {"group_size": size, "bits": wanted, "mode": "affine"}
        if own == entry:
            return True
        overrides[path] = own
        return dict(own)

    overrides: dict[str, Any] = {}
    nn.quantize(drafter, size, entry["bits"], mode="affine", class_predicate=choose)
    if quantised_layers(drafter):
        drafter.config = replace(drafter.config, quantization={**entry, **overrides})
    return tuple(left)


def drafter_report(
    drafter: Drafter, name: str, bytes_before: int, left: tuple[str, ...]
) -> PartReport:
    """Sizes of a finished head."""
    return PartReport(
        name=name,
        bytes_before=bytes_before,
        bytes_after=model_bytes(drafter),
        parameters=get_total_parameters(drafter),
        quantization=drafter.config.quantization,
        full_precision=left,
    )
