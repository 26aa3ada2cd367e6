"""Checkpoints of architectures whose layers are unlike a Llama's."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest
from architecture_files import write_architecture
from mlx_lm.generate import generate_step
from mlx_lm.models import bitlinear_layers

from mlx_redrafter.benchmark.precision import load_at
from mlx_redrafter.conversion import convert
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.text.loading import load

PROMPT = [30, 41, 52, 63, 74, 30, 41, 52]


def test_ternary_weights_are_packed_in_whole_numbers(tmp_path: Path) -> None:
    source = write_architecture(tmp_path / "bitnet", "bitnet", drafter=True)
    convert(hf_path=source, mlx_path=tmp_path / "out")
    theirs = mlx_lm.load(str(tmp_path / "out"))[0]
    expected = [int(token) for token, _ in generate_step(mx.array(PROMPT), theirs, max_tokens=12)]
    model = load(tmp_path / "out", dtype=mx.float32, plan=False)[0]
    assert [one.token for one in decode(model, PROMPT, DecodingConfig(max_tokens=12))] == expected


@pytest.mark.skipif(mx.metal.is_available(), reason="its kernels run here")
def test_kernels_for_metal_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_architecture(tmp_path / "bitnet", "bitnet", drafter=True)
    kernel = bitlinear_layers.make_bitlinear_kernel()
    monkeypatch.setattr(bitlinear_layers, "_bitlinear_kernel", kernel)
    with pytest.raises(
        RedrafterError, match=r"bitnet cannot run on this machine: .* for Metal only"
    ):
        load(source)
    with pytest.raises(
        RedrafterError, match=r"The target cannot run on this machine: .* for Metal"
    ):
        convert(hf_path=source, mlx_path=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_layers_that_mlx_lm_cannot_quantise(tmp_path: Path) -> None:
    source = write_architecture(tmp_path / "afm7", "afm7")
    with pytest.raises(RedrafterError, match=r"type \(afm7\) that it cannot quantise .* full"):
        convert(hf_path=source, mlx_path=tmp_path / "out", quantize=True, q_group_size=32)
    assert not (tmp_path / "out").exists()
    with pytest.raises(RedrafterError, match=r"type \(afm7\) that it cannot quantise"):
        load_at(str(source), "4bit")


def test_a_recipe_that_cannot_number_the_layers_is_the_one_to_leave_out(tmp_path: Path) -> None:
    source = write_architecture(tmp_path / "ngram", "longcat_flash_ngram")
    with pytest.raises(RedrafterError, match="leave --quant-predicate out"):
        convert(
            hf_path=source, mlx_path=tmp_path / "out", quantize=True, quant_predicate="mixed_3_6"
        )


@pytest.mark.parametrize("quantised", [True, False], ids=["quantised", "full"])
def test_experts_that_are_not_packed(tmp_path: Path, quantised: bool) -> None:
    """The width of the experts, 48, is no multiple of 32, so their last layer is not packed."""
    source = write_architecture(tmp_path / "mixtral", "mixtral", drafter=True)
    packing = {"quantize": True, "q_group_size": 32} if quantised else {}
    out = tmp_path / "out"
    report = convert(hf_path=source, mlx_path=out, dtype="bfloat16", check=True, **packing)
    assert report.check is not None
    assert report.check.target_matches
    assert report.check.failure is None
    config = DecodingConfig(max_tokens=12)
    models = [load(out, drafter=drafter, plan=False)[0] for drafter in (None, False)]
    texts = [[one.token for one in decode(model, PROMPT, config)] for model in models]
    assert texts[0] == texts[1]
    if not mx.metal.is_available() and not mx.cuda.is_available():
        with pytest.raises(RedrafterError, match="ask for float32"):
            load(out, dtype=mx.bfloat16)
