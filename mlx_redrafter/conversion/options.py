"""What can be asked of a conversion, and which combinations make sense."""

from __future__ import annotations

from dataclasses import dataclass

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from mlx_lm.convert import MODEL_CONVERSION_DTYPES, QUANT_RECIPES

from ..errors import RedrafterError
from ..ranges import shown

# What mlx.core.quantize accepts: group sizes and bits of each mode, the default first.
MODES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "affine": ((64, 32, 128), (4, 2, 3, 5, 6, 8)),
    "mxfp4": ((32,), (4,)),
    "nvfp4": ((16,), (4,)),
    "mxfp8": ((32,), (8,)),
}
DRAFTER_BITS = (4, 5, 6, 8)
SMALL_LAYER_BITS = 8


@dataclass(frozen=True)
class Options:
    """The arguments of ``convert``; see there."""

    hf_path: str | None = None
    drafter: str | None = None
    mlx_path: str | None = None
    quantize: bool = False
    q_bits: int | None = None
    q_group_size: int | None = None
    q_mode: str = "affine"
    quant_predicate: str | None = None
    drafter_q_bits: int | str | None = None
    drafter_rnn_q_bits: int | str | None = None
    dtype: str | None = None
    dequantize: bool = False
    upload_repo: str | None = None
    overwrite: bool = False
    check: bool = False
    revision: str | None = None
    gguf_file: str | None = None
    trust_remote_code: bool = False

    def validate(self) -> None:
        """Refuse combinations that cannot be meant.

        Raises:
            RedrafterError: Saying which, and what to do.
        """
        for flag, place in (
            ("--hf-path", self.hf_path),
            ("--drafter", self.drafter),
            ("--mlx-path", self.mlx_path),
        ):
            if place == "":  # which as a path would be the current directory
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
        if self.dtype is not None and self.dtype not in MODEL_CONVERSION_DTYPES:
            raise RedrafterError(
                f"--dtype is {self.dtype}: choose {', '.join(MODEL_CONVERSION_DTYPES)}."
            )
        self._validate_repository()

    def _validate_repository(self) -> None:
        if self.upload_repo is None:
            return
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
            if self.quant_predicate not in QUANT_RECIPES:
                raise RedrafterError(
                    f"--quant-predicate is {self.quant_predicate}: "
                    f"choose {', '.join(QUANT_RECIPES)}."
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
