"""What can be asked of a conversion, and which combinations make sense."""

from __future__ import annotations

from dataclasses import dataclass, fields
from numbers import Integral
from pathlib import Path
from typing import Any

from ..errors import RedrafterError
from ..ranges import of_kind, option, shown

# What mlx.core.quantize accepts: group sizes and bits of each mode, the default first.
MODES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "affine": ((64, 32, 128), (4, 2, 3, 5, 6, 8)),
    "mxfp4": ((32,), (4,)),
    "nvfp4": ((16,), (4,)),
    "mxfp8": ((32,), (8,)),
}
DRAFTER_BITS = (4, 5, 6, 8)
SMALL_LAYER_BITS = 8
# mlx-lm's, repeated here so that --help does not wait for it; a test compares them.
RECIPES = ("mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6")
DTYPES = ("float16", "bfloat16", "float32")
PLACES = ("hf_path", "drafter", "mlx_path")


_WHAT, _HOW, _AFTER = "what", "precision", "the bundle"

# What a field of a type may be given, and how a refusal says so.
_PLACE = (str, Path), "a path or the name of a Hub repo"
_KINDS: dict[str, tuple[Any, str]] = {
    "bool": (bool, "True or False"),
    "str": (str, "text"),
    "int": (Integral, "a whole number"),
    "int | str": ((Integral, str), '4, 5, 6, 8 or "none"'),
}


def _bits(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


@dataclass(frozen=True)
class Options:
    """The arguments of ``convert``, see there; each field's metadata describes its flag.

    Raises:
        RedrafterError: If a value is of the wrong kind.
    """

    hf_path: str | None = option(
        None,
        _WHAT,
        "target: a directory, Hub repository or GGUF file",
        aliases=("model",),
        metavar="TARGET",
    )
    gguf_file: str | None = option(
        None, _WHAT, "which GGUF file of TARGET, where it holds several", metavar="NAME"
    )
    drafter: str | None = option(
        None, _WHAT, "drafter: a directory, Hub repository or weight file; without --hf-path it "
        "goes into the existing bundle --mlx-path", metavar="DRAFTER",
    )  # fmt: skip
    mlx_path: str | None = option(
        None, _WHAT, "bundle to write (default: models/ and TARGET's name)", metavar="OUT"
    )
    revision: str | None = option(
        None, _WHAT, "branch, tag or commit of TARGET on the Hub", metavar="NAME"
    )
    trust_remote_code: bool = option(
        False, _WHAT, "let Python files that come with TARGET run on this machine"
    )
    quantize: bool = option(False, _HOW, "quantise target and drafter", aliases=("q",))
    q_bits: int | None = option(
        None, _HOW, "bits per weight (default: the mode's own, 4 for affine)"
    )
    q_group_size: int | None = option(
        None, _HOW, "weights that share a scale (default: 64 for affine)"
    )
    q_mode: str = option("affine", _HOW, "quantisation mode of the target", choices=tuple(MODES))
    quant_predicate: str | None = option(
        None, _HOW, "mixed-bit recipe of the target", choices=RECIPES
    )
    drafter_q_bits: int | str | None = option(
        None, _HOW,
        "bits of the drafter's residual blocks and head (default: --q-bits with -q, at least 4)",
        reader=_bits, choices=(*DRAFTER_BITS, "none"),
    )  # fmt: skip
    drafter_rnn_q_bits: int | str | None = option(
        None, _HOW, "bits of the drafter's rnn_u, rnn_w and input_proj (default: 8)",
        reader=_bits, choices=(*DRAFTER_BITS, "none"),
    )  # fmt: skip
    dtype: str | None = option(None, _HOW, "type of what is not quantised", choices=DTYPES)
    dequantize: bool = option(False, _HOW, "turn quantised layers into full ones", aliases=("d",))
    overwrite: bool = option(False, _AFTER, "replace OUT, or the drafter in it")
    check: bool = option(False, _AFTER, "decode with the bundle and compare with the source")
    upload_repo: str | None = option(
        None, _AFTER, "upload the bundle to this Hub repository", metavar="REPO"
    )

    def __post_init__(self) -> None:
        """Check the kinds of values, and take paths as text."""
        for one in fields(self):
            value, type_ = getattr(self, one.name), str(one.type).removesuffix(" | None")
            kind, wanted = _PLACE if one.name in PLACES else _KINDS[type_]
            if value is not None or type_ == "bool":
                of_kind(value, one.name, kind, wanted)
            if isinstance(value, Path):
                object.__setattr__(self, one.name, str(value))

    def validate(self) -> None:
        """Refuse combinations that cannot be meant.

        Raises:
            RedrafterError: Saying which, and what to do.
        """
        for name in PLACES:
            if getattr(self, name) == "":  # which as a path would be the current directory
                flag = f"--{name.replace('_', '-')}"
                raise RedrafterError(f"{flag} is empty: name a place, or leave it out.")
        if self.hf_path is None and self.drafter is None:
            raise RedrafterError("Nothing to convert: pass --hf-path, --drafter or both.")
        if self.gguf_file is not None and self.hf_path is None:
            raise RedrafterError("--gguf-file names a file of --hf-path: pass that as well.")
        if self.revision is not None and self.hf_path is None:
            raise RedrafterError("--revision is one of --hf-path: pass that as well.")
        if self.hf_path is None and self.mlx_path is None:
            raise RedrafterError(
                "A drafter alone goes into an existing bundle: name it with --mlx-path."
            )
        if self.quantize and self.dequantize:
            raise RedrafterError("Choose either --quantize or --dequantize, not both.")
        self._validate_quantization()
        for flag, bits in (
            ("--drafter-q-bits", self.drafter_q_bits),
            ("--drafter-rnn-q-bits", self.drafter_rnn_q_bits),
        ):
            if bits is not None and bits != "none" and bits not in DRAFTER_BITS:
                raise RedrafterError(f"{flag} is {bits!r}: choose 4, 5, 6, 8 or none.")
        if self.dequantize and self.drafter_bits is not None:
            raise RedrafterError("Choose either --drafter-q-bits or --dequantize, not both.")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise RedrafterError(f"--dtype is {self.dtype}: choose {', '.join(DTYPES)}.")
        self._validate_repository()

    def _validate_repository(self) -> None:
        if self.upload_repo is None:
            return
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

        try:
            validate_repo_id(self.upload_repo)
        except HFValidationError:
            raise RedrafterError(
                f"--upload-repo is {self.upload_repo!r}, which the Hub takes for no name of a "
                "repository: write user/name."
            ) from None

    def _validate_quantization(self) -> None:
        if self.q_mode not in MODES:
            raise RedrafterError(f"--q-mode is {self.q_mode}: choose {', '.join(MODES)}.")
        groups, bits = MODES[self.q_mode]
        for flag, value, allowed in (
            ("--q-group-size", self.q_group_size, groups),
            ("--q-bits", self.q_bits, bits),
        ):
            if value is not None and value not in allowed:
                raise RedrafterError(
                    f"{flag} is {shown(value)}, which the mode {self.q_mode} does not have: "
                    f"choose {' or '.join(str(n) for n in sorted(allowed))}."
                )
        asked = self.q_bits or self.quant_predicate or self.q_mode != "affine"
        if asked and not self.quantize:
            raise RedrafterError(
                "--q-bits, --q-mode and --quant-predicate shape a quantisation that was not asked "
                "for: add -q."
            )
        packs = self.quantize or self.drafter_bits is not None
        if self.q_group_size is not None and not packs and self.drafter_small_bits is None:
            raise RedrafterError(
                "--q-group-size shapes a quantisation that was not asked for: add -q, or "
                "--drafter-q-bits."
            )
        if self.quant_predicate is not None:
            if self.quant_predicate not in RECIPES:
                raise RedrafterError(
                    f"--quant-predicate is {self.quant_predicate}: choose {', '.join(RECIPES)}."
                )
            if self.q_mode != "affine":
                raise RedrafterError("--quant-predicate goes with --q-mode affine only.")

    @property
    def drafter_bits(self) -> int | None:
        """Bits of the drafter's residual blocks and head; None for full precision.

        Unless asked for, those of the target's quantisation, but not fewer than 4.
        """
        if self.drafter_q_bits == "none":
            return None
        if isinstance(self.drafter_q_bits, int):
            return self.drafter_q_bits
        if not self.quantize:
            return None
        return max(self.q_bits or MODES[self.q_mode][1][0], min(DRAFTER_BITS))

    @property
    def drafter_small_bits(self) -> int | None:
        """Bits of rnn_u, rnn_w and input_proj; None for full precision."""
        if self.drafter_rnn_q_bits == "none":
            return None
        if isinstance(self.drafter_rnn_q_bits, int):
            return self.drafter_rnn_q_bits
        return None if self.drafter_bits is None else SMALL_LAYER_BITS

    @property
    def drafter_group_size(self) -> int:
        """Weights that share a scale in the drafter, whose mode is always affine."""
        return self.q_group_size if self.q_mode == "affine" and self.q_group_size else 64
