"""PyTorch and GGUF checkpoints to MLX bundles."""

from __future__ import annotations

from pathlib import Path

from ..ranges import function_of
from .options import Options
from .report import CheckReport, ConversionReport, PartReport, Progress, silent

__all__ = ["CheckReport", "ConversionReport", "PartReport", "convert"]


def convert(
    hf_path: str | Path | None = None,
    mlx_path: str | Path | None = None,
    *,
    drafter: str | Path | None = None,
    quantize: bool = False,
    q_group_size: int | None = None,
    q_bits: int | None = None,
    q_mode: str = "affine",
    quant_predicate: str | None = None,
    drafter_q_bits: int | str | None = None,
    drafter_rnn_q_bits: int | str | None = None,
    dtype: str | None = None,
    dequantize: bool = False,
    upload_repo: str | None = None,
    overwrite: bool = False,
    check: bool = False,
    revision: str | None = None,
    gguf_file: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> ConversionReport:
    """Turn a target, a recurrent drafter, or both into a bundle, as ``convert.py`` does.

    The target goes through mlx-lm's conversion; arguments of the names that ``mlx_lm.convert`` has
    mean the same, but a ``quant_predicate`` is named here, not a function. The drafter's layout is
    that of Apple's ml-recurrent-drafter, or this package's own.

    Args:
        hf_path: The target: a directory or Hub repository with safetensors, PyTorch or GGUF
            weights, or a GGUF file. If it holds a drafter too, under a ``drafter.`` prefix or in
            ``drafter/``, that is converted with it.
        mlx_path: The bundle to write; by default ``models/`` and the target's name.
        drafter: The drafter: a directory, a Hub repository or one weight file. Without ``hf_path``
            it goes into the existing bundle ``mlx_path``.
        quantize: Quantise the target and, unless asked otherwise, the drafter.
        q_group_size: Weights that share a scale; by default the mode's own.
        q_bits: Bits per weight; by default the mode's own.
        q_mode: "affine", "mxfp4", "nvfp4" or "mxfp8".
        quant_predicate: One of mlx-lm's mixed-bit recipes, such as "mixed_4_6".
        drafter_q_bits: 4, 5, 6, 8 or "none" for the drafter's residual blocks and output rows; by
            default the target's bits (at least 4) with ``quantize``, else "none".
        drafter_rnn_q_bits: The same for rnn_u, rnn_w and input_proj; by default 8 where
            ``drafter_q_bits`` is in force.
        dtype: "float16", "bfloat16" or "float32" for what is not quantised; by default what the
            target's config.json says, and for the drafter every bit as stored.
        dequantize: Turn quantised layers back into full ones.
        upload_repo: Hub repository to upload the bundle to.
        overwrite: Replace an existing bundle, or drafter of a bundle.
        check: Decode with the finished bundle and compare it with its source.
        revision: Branch, tag or commit of ``hf_path`` on the Hub.
        gguf_file: Which GGUF file of ``hf_path``, where it holds several.
        trust_remote_code: Whether Python files of the target's repository may be run.
        progress: Called with a stage's name, bytes done and bytes in all.

    Returns:
        Sizes, notes and the check's findings.

    Raises:
        RedrafterError: If the arguments, the checkpoints or the disk do not allow it; ``mlx_path``
            is then as it was before.
    """
    given = {name: value for name, value in locals().items() if name != "progress"}
    options = Options(**given)
    function_of(progress, "progress", "a function of (stage, bytes done, bytes in all)")
    options.validate()
    from .pipeline import run  # which takes seconds to import, and --help needs the options only

    return run(options, progress or silent)
