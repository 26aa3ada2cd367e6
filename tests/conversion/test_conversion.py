"""Conversions of every layout, compared with what PyTorch and mlx-lm compute."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from conversion_models import (
    HIDDEN,
    VOCAB,
    make_head,
    make_llama,
    torch,
    transformers,
    write_head,
    write_memory_head,
    write_target,
    write_tokenizer,
)
from mlx.utils import tree_flatten
from mlx_lm.convert import convert as mlx_lm_convert

from mlx_redrafter.conversion import convert
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.text.drafter_files import load_drafter, tokenizer_hash
from mlx_redrafter.text.loading import load
from mlx_redrafter.ui.cli.convert import main

pytestmark = pytest.mark.torch
LAYOUTS = ["safetensors", "safetensors-sharded", "bin", "bin-sharded", "pt", "pth", "pt-sharded"]


def torch_logits(head: Any, steps: int = 3) -> tuple[Any, ...]:
    """Random inputs and the PyTorch head's logits after each of ``steps`` tokens."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(5, HIDDEN, generator=generator)
    embeddings = torch.randn(steps, 5, HIDDEN, generator=generator)
    state, found = torch.zeros(5, HIDDEN), []
    with torch.no_grad():
        for embedding in embeddings:
            state = head.advance(embedding, state)
            found.append(head.logits(hidden, state))
    return hidden.numpy(), embeddings.numpy(), torch.stack(found).numpy()


def mlx_logits(drafter: Any, hidden: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
    state, found = drafter.initial_state(len(hidden)), []
    for embedding in embeddings:
        state = drafter.advance(mx.array(embedding), state)
        found.append(drafter.logits(mx.array(hidden), state))
    return np.array(mx.stack(found))


def weights_of(directory: Path) -> dict[str, mx.array]:
    found: dict[str, mx.array] = {}
    for path in sorted(directory.glob("model*.safetensors")):
        found |= mx.load(str(path))
    return found


def assert_same_weights(left: dict[str, mx.array], right: dict[str, mx.array]) -> None:
    assert left.keys() == right.keys()
    for name, array in left.items():
        assert array.dtype == right[name].dtype, name
        assert mx.array_equal(array, right[name]), name


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_target(tmp_path_factory.mktemp("checkpoints") / "tiny-llama")


@pytest.fixture(scope="module")
def bundle(target: Path) -> Path:
    """A bundle without a drafter."""
    out = target.parent / "bundle"
    convert(hf_path=target, mlx_path=out)
    return out


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("projected", [False, True], ids=["apple", "input_proj"])
@pytest.mark.parametrize("rnn", [True, False], ids=["rnn", "sum"])
def test_head_computes_what_pytorch_computes(
    tmp_path: Path, target: Path, layout: str, projected: bool, rnn: bool
) -> None:
    head = make_head(rnn, projected)
    source = write_head(tmp_path / "head", head, layout)
    report = convert(hf_path=target, drafter=source, mlx_path=tmp_path / "out")
    drafter = load_drafter(tmp_path / "out" / "drafter")
    hidden, embeddings, expected = torch_logits(head)
    assert np.abs(mlx_logits(drafter, hidden, embeddings) - expected).max() < 1e-4
    assert drafter.config.rnn is rnn
    assert drafter.config.has_input_proj is projected
    assert report.drafter is not None
    assert report.drafter.bytes_after == report.drafter.bytes_before


@pytest.mark.parametrize("layout", LAYOUTS)
def test_target_layouts_give_the_same_bundle(tmp_path: Path, bundle: Path, layout: str) -> None:
    source = write_target(tmp_path / "target", layout=layout)
    convert(hf_path=source, mlx_path=tmp_path / "out")
    assert_same_weights(weights_of(tmp_path / "out"), weights_of(bundle))


def test_target_computes_what_pytorch_computes(bundle: Path) -> None:
    model, tokenizer = mlx_lm.load(str(bundle))
    ids = tokenizer.encode("Hello, world")
    with torch.no_grad():
        expected = make_llama()(torch.tensor([ids])).logits.numpy()
    assert np.abs(np.array(model(mx.array([ids]))) - expected).max() < 1e-4


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": "bfloat16"},
        {"quantize": True, "q_bits": 4, "q_group_size": 32},
        {"quantize": True, "q_bits": 8, "dtype": "float16"},
        {"quantize": True, "q_mode": "mxfp4"},
        {"quantize": True, "q_mode": "nvfp4"},
        {"quantize": True, "q_mode": "mxfp8"},
        {"quantize": True, "q_group_size": 64, "quant_predicate": "mixed_4_6"},
    ],
    ids=lambda options: "-".join(str(v) for v in options.values()) or "plain",
)
def test_target_is_mlx_lms_own_conversion(
    tmp_path: Path, target: Path, options: dict[str, Any]
) -> None:
    convert(hf_path=target, mlx_path=tmp_path / "ours", **options)
    mlx_lm_convert(str(target), str(tmp_path / "theirs"), **options)
    assert_same_weights(weights_of(tmp_path / "ours"), weights_of(tmp_path / "theirs"))
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        ours = json.loads((tmp_path / "ours" / name).read_text())
        assert ours == json.loads((tmp_path / "theirs" / name).read_text()), name


def test_dequantize_is_mlx_lms_own(tmp_path: Path, target: Path) -> None:
    head = write_head(tmp_path / "head", make_head())
    convert(hf_path=target, drafter=head, mlx_path=tmp_path / "q", quantize=True)
    convert(hf_path=tmp_path / "q", mlx_path=tmp_path / "ours", dequantize=True)
    mlx_lm_convert(str(tmp_path / "q"), str(tmp_path / "theirs"), dequantize=True)
    assert_same_weights(weights_of(tmp_path / "ours"), weights_of(tmp_path / "theirs"))
    assert "quantization" not in json.loads((tmp_path / "ours" / "config.json").read_text())
    # The drafter inside the source bundle came along, dequantised too.
    assert load_drafter(tmp_path / "ours" / "drafter").config.quantization is None


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("precision", ["bfloat16", "float16", "float32"])
def test_stored_bits_are_kept(tmp_path: Path, kind: str, precision: str) -> None:
    dtype = getattr(torch, precision)
    integers = "uint32" if precision == "float32" else "uint16"
    model, head = make_llama(dtype), make_head().to(dtype)
    source = write_target(tmp_path / "target", model, kind)
    drafter = write_head(tmp_path / "head", head, kind)
    convert(hf_path=source, drafter=drafter, mlx_path=tmp_path / "out")
    for directory, tensors in (("out", model.state_dict()), ("out/drafter", head.state_dict())):
        found = weights_of(tmp_path / directory)
        for name, tensor in tensors.items():
            assert found[name].dtype == getattr(mx, precision)
            bits = np.array(found[name].view(getattr(mx, integers)))
            assert np.array_equal(bits, tensor.view(getattr(torch, integers)).numpy()), name


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32"])
def test_dtype_applies_to_both(tmp_path: Path, target: Path, kind: str) -> None:
    head = write_head(tmp_path / "head", make_head())
    convert(hf_path=target, drafter=head, mlx_path=tmp_path / "out", dtype=kind)
    for directory in ("out", "out/drafter"):
        kinds = {array.dtype for array in weights_of(tmp_path / directory).values()}
        assert kinds == {getattr(mx, kind)}


def test_drafter_under_a_prefix_in_the_target(tmp_path: Path, bundle: Path) -> None:
    model, head = make_llama(), make_head(projected=True)
    directory = write_target(tmp_path / "merged", model, "bin")
    both = {f"drafter.{k}": v for k, v in head.state_dict().items()} | model.state_dict()
    torch.save(both, directory / "pytorch_model.bin")
    report = convert(hf_path=directory, mlx_path=tmp_path / "out")
    assert report.drafter is not None
    assert any("inferred" in note for note in report.notes)
    assert_same_weights(weights_of(tmp_path / "out"), weights_of(bundle))
    hidden, embeddings, expected = torch_logits(head)
    drafter = load_drafter(tmp_path / "out" / "drafter")
    assert np.abs(mlx_logits(drafter, hidden, embeddings) - expected).max() < 1e-4


def test_both_under_prefixes_as_one_training_module(tmp_path: Path, bundle: Path) -> None:
    model, head = make_llama(), make_head()
    directory = write_target(tmp_path / "merged", model)
    for old in directory.glob("*.safetensors"):
        old.unlink()
    both = {f"drafter.{k}": v for k, v in head.state_dict().items()}
    both |= {f"llm.{k}": v for k, v in model.state_dict().items()}
    torch.save({"state_dict": both}, directory / "checkpoint.pt")
    torch.save({"step": 3}, directory / "optimizer.pt")
    convert(hf_path=directory, mlx_path=tmp_path / "out")
    assert_same_weights(weights_of(tmp_path / "out"), weights_of(bundle))
    assert load_drafter(tmp_path / "out" / "drafter").config.num_draft_layers == 2


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("rnn", [True, False])
def test_lone_file_infers_its_configuration(
    tmp_path: Path, bundle: Path, suffix: str, projected: bool, rnn: bool
) -> None:
    import shutil

    from safetensors.torch import save_file

    head = make_head(rnn, projected, num_draft_layers=0 if projected else 3)
    file = tmp_path / f"head.{suffix}"
    if suffix == "pt":
        torch.save(head.state_dict(), file)
    else:
        save_file(head.state_dict(), file)
    shutil.copytree(bundle, tmp_path / "out")
    report = convert(drafter=file, mlx_path=tmp_path / "out")
    config = load_drafter(tmp_path / "out" / "drafter").config
    assert (config.hidden_size, config.vocab_size) == (HIDDEN, VOCAB)
    assert config.exit_dim == (HIDDEN if projected else 2 * HIDDEN)
    assert config.num_draft_layers == (0 if projected else 3)
    assert config.rnn is rnn
    assert report.target is None
    assert "## Drafter" in (tmp_path / "out" / "README.md").read_text()


def test_head_over_frequent_tokens(tmp_path: Path, target: Path) -> None:
    tokens = torch.arange(3, 3 + 40)
    head = make_head(vocab_size=40)
    directory = write_head(tmp_path / "head", head, "bin")
    config = json.loads((directory / "config.json").read_text())
    config |= {"vocab_size": VOCAB, "draft_vocab_size": 40}
    (directory / "config.json").write_text(json.dumps(config))
    torch.save(head.state_dict() | {"draft_tokens": tokens}, directory / "pytorch_model.bin")
    convert(hf_path=target, drafter=directory, mlx_path=tmp_path / "out")
    convert(
        hf_path=target,
        drafter=directory / "pytorch_model.bin",
        mlx_path=tmp_path / "quantised",
        quantize=True,
    )
    for out in ("out", "quantised"):
        drafter = load_drafter(tmp_path / out / "drafter")
        assert drafter.draft_tokens.dtype == mx.int32
        assert drafter.draft_tokens.tolist() == tokens.tolist()
        assert drafter.config.vocab_size == VOCAB


def test_unused_tensors_of_old_checkpoints(tmp_path: Path, bundle: Path) -> None:
    model = make_llama()
    old = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(8) for i in range(2)}
    directory = write_target(tmp_path / "target", model, "bin")
    torch.save(model.state_dict() | old, directory / "pytorch_model.bin")
    head = write_head(tmp_path / "head", make_head(emb_norm=True))
    report = convert(hf_path=directory, drafter=head, mlx_path=tmp_path / "out")
    assert_same_weights(weights_of(tmp_path / "out"), weights_of(bundle))
    assert any("emb_norm.weight" in note for note in report.notes)
    assert not any("emb_norm" in name for name in weights_of(tmp_path / "out" / "drafter"))


def test_tied_target_from_a_pickle(tmp_path: Path) -> None:
    model = make_llama(tie_word_embeddings=True)
    source = write_target(tmp_path / "target", model, "bin")
    convert(hf_path=source, mlx_path=tmp_path / "out")
    assert "lm_head.weight" not in weights_of(tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "block", "small"),
    [
        ({"quantize": True}, 4, 8),
        ({"quantize": True, "q_bits": 2}, 4, 8),
        ({"quantize": True, "q_mode": "mxfp8"}, 8, 8),
        ({"drafter_q_bits": 5}, 5, 8),
        ({"quantize": True, "drafter_q_bits": 6, "q_group_size": 32}, 6, 8),
        ({"quantize": True, "drafter_rnn_q_bits": 4}, 4, 4),
        ({"quantize": True, "drafter_rnn_q_bits": "none"}, 4, None),
        ({"quantize": True, "drafter_q_bits": "none"}, None, None),
    ],
    ids=lambda value: "-".join(str(v) for v in value.values()) if isinstance(value, dict) else None,
)
def test_drafter_quantisation(
    tmp_path: Path, target: Path, options: dict[str, Any], block: int | None, small: int | None
) -> None:
    head = make_head(projected=True)
    source = write_head(tmp_path / "head", head)
    report = convert(hf_path=target, drafter=source, mlx_path=tmp_path / "out", **options)
    drafter = load_drafter(tmp_path / "out" / "drafter")
    bits = {name: getattr(module, "bits", None) for name, module in drafter.named_modules()}
    assert [bits[f"lm_head.{i}{tail}"] for i, tail in ((0, ".linear"), (2, ""))] == [block] * 2
    assert [bits[name] for name in ("rnn_u", "rnn_w", "input_proj")] == [small] * 3
    assert report.drafter is not None
    assert report.drafter.quantization == drafter.config.quantization
    # What was written is what mlx's quantisation of the PyTorch weights gives.
    weight = mx.array(head.state_dict()["rnn_u.weight"].numpy())
    if small is not None:
        size = options.get("q_group_size", 64)
        expected = mx.quantize(weight, size, small)
        stored = (drafter.rnn_u.weight, drafter.rnn_u.scales, drafter.rnn_u.biases)
        assert all(mx.array_equal(a, b) for a, b in zip(expected, stored, strict=True))
    stored_bytes = sum(a.nbytes for _, a in tree_flatten(drafter.parameters()))
    assert report.drafter.bytes_after == stored_bytes
    assert report.drafter.bits_per_weight == pytest.approx(
        8 * stored_bytes / sum(p.numel() for p in head.parameters())
    )


def test_quantised_drafter_round_trip(tmp_path: Path, target: Path) -> None:
    head = make_head()
    source = write_head(tmp_path / "head", head)
    first, second = tmp_path / "first", tmp_path / "second"
    convert(hf_path=target, drafter=source, mlx_path=first, quantize=True, q_bits=8)
    hidden, embeddings, expected = torch_logits(head)
    got = mlx_logits(load_drafter(first / "drafter"), hidden, embeddings)
    assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max()
    # A quantised drafter passes unchanged into another bundle, and back to full precision.
    convert(hf_path=target, drafter=first, mlx_path=second, quantize=True, q_bits=4)
    assert_same_weights(weights_of(first / "drafter"), weights_of(second / "drafter"))
    convert(
        drafter=first / "drafter", mlx_path=second, dequantize=True, dtype="float32", overwrite=True
    )
    full = load_drafter(second / "drafter")
    assert full.config.quantization is None
    again = mlx_logits(full, hidden, embeddings)
    assert np.abs(again - got).max() < 1e-3
    with pytest.raises(RedrafterError, match="quantised already"):
        convert(drafter=first, mlx_path=second, drafter_q_bits=4, overwrite=True)


def test_layers_the_group_size_does_not_divide_are_named(tmp_path: Path) -> None:
    model = make_llama(hidden_size=96, intermediate_size=128, head_dim=24)
    target = write_target(tmp_path / "target", model)
    head = write_head(tmp_path / "head", make_head(hidden_size=96, exit_dim=128))
    out = tmp_path / "out"
    report = convert(hf_path=target, drafter=head, mlx_path=out, quantize=True)
    assert report.target is not None
    assert report.drafter is not None
    assert "model.layers.0.mlp.gate_proj" in report.target.full_precision
    assert "model.layers.0.mlp.down_proj" not in report.target.full_precision
    assert set(report.drafter.full_precision) == {"rnn_u", "rnn_w"}
    loaded, _ = load(out)
    assert loaded.drafter is not None
    mlx_lm.load(str(out))


def test_bundle_records_what_it_is(tmp_path: Path, target: Path) -> None:
    head = write_head(tmp_path / "head", make_head())
    out = tmp_path / "out"
    (target / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n# Tiny\n")
    convert(hf_path=target, drafter=head, mlx_path=out)
    (target / "README.md").unlink()
    tokenizer = mlx_lm.load(str(out))[1]
    config = json.loads((out / "drafter" / "config.json").read_text())
    assert config["target"] == {"name": "tiny-llama", "tokenizer_hash": tokenizer_hash(tokenizer)}
    assert (config["hidden_size"], config["vocab_size"]) == (HIDDEN, VOCAB)
    assert config["converted_from"] == "head"
    card = (out / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "library_name: mlx" in card
    assert "## Drafter" in card
    for path in (p for p in out.rglob("*") if p.suffix in (".json", ".md")):
        assert str(tmp_path) not in path.read_text(), f"{path.name} names a path of this machine"


def test_bundle_decodes_and_check_reports(tmp_path: Path, target: Path) -> None:
    head = write_head(tmp_path / "head", make_head(), "bin")
    seen: dict[str, tuple[int, int]] = {}
    report = convert(
        hf_path=target,
        drafter=head,
        mlx_path=tmp_path / "out",
        quantize=True,
        q_bits=8,
        check=True,
        progress=lambda stage, done, total: seen.__setitem__(stage, (done, total)),
    )
    check = report.check
    assert check is not None
    assert check.target_matches is True
    assert check.tokens > 0
    assert check.draft_matches == 1.0
    assert check.tokens_per_step is not None
    assert check.tokens_per_step >= 1
    assert check.drafter_agreement is not None
    assert 0.8 < check.drafter_agreement <= 1
    assert list(seen) == [
        "Checking the target",
        "Reading PyTorch weights",
        "Checking the drafter",
        "Writing the target",
        "Writing the drafter",
        "Checking the bundle",
    ]
    assert all(done == total for done, total in seen.values()), seen


def test_check_without_quantisation_or_drafter(tmp_path: Path, target: Path) -> None:
    report = convert(hf_path=target, mlx_path=tmp_path / "out", check=True)
    assert report.check is not None
    assert report.check.target_matches is True
    assert report.check.draft_matches is None
    head = write_head(tmp_path / "head", make_head())
    report = convert(drafter=head, mlx_path=tmp_path / "out", check=True)
    assert report.check is not None
    assert report.check.target_matches is None
    assert report.check.draft_matches == 1.0
    assert report.check.drafter_agreement is None


def test_check_of_a_quantised_head_with_a_memory(tmp_path: Path, target: Path) -> None:
    head = write_memory_head(tmp_path / "head")
    out = tmp_path / "out"
    report = convert(hf_path=target, drafter=head, mlx_path=out, quantize=True, check=True)
    assert report.drafter is not None
    assert report.drafter.quantization is not None
    assert report.check is not None
    assert report.check.passed
    assert report.check.draft_matches == 1.0
    assert report.check.drafter_positions > 0
    assert report.check.drafter_agreement is not None
    assert 0.2 < report.check.drafter_agreement < 1


@pytest.mark.parametrize("alone", [False, True], ids=["bundle", "drafter"])
def test_a_check_that_breaks_off_leaves_what_was_there(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    out, head = tmp_path / "out", write_head(tmp_path / "head", make_head())
    convert(hf_path=target, drafter=head, mlx_path=out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def fail(*_arguments: object, **_options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("mlx_redrafter.conversion.check.load", fail)
    other = write_head(tmp_path / "other", make_head(projected=True))
    with pytest.raises(ZeroDivisionError):
        convert(
            hf_path=None if alone else target,
            drafter=other,
            mlx_path=out,
            overwrite=True,
            check=True,
        )
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"out", "head", "other"}


def test_mismatched_pair_is_refused_at_load(tmp_path: Path, target: Path) -> None:
    head = write_head(tmp_path / "head", make_head())
    convert(hf_path=target, drafter=head, mlx_path=tmp_path / "first")
    other = write_target(tmp_path / "other")
    write_tokenizer(other, [chr(0x4E00 + i) for i in range(60)])
    convert(hf_path=other, mlx_path=tmp_path / "second")
    with pytest.raises(RedrafterError, match="tokenizer"):
        load(tmp_path / "second", drafter=tmp_path / "first" / "drafter")
    with pytest.raises(RedrafterError, match="tokenizer"):
        convert(drafter=tmp_path / "first", mlx_path=tmp_path / "second")
    assert not (tmp_path / "second" / "drafter").exists()


def test_recurrent_target(tmp_path: Path) -> None:
    config = transformers.MambaConfig(
        hidden_size=HIDDEN, num_hidden_layers=1, vocab_size=VOCAB, state_size=4
    )
    torch.manual_seed(4)
    source = write_target(tmp_path / "mamba", transformers.MambaForCausalLM(config))
    report = convert(hf_path=source, mlx_path=tmp_path / "out", quantize=True, check=True)
    assert report.target is not None
    assert report.target.full_precision == ("backbone.layers.0.mixer.dt_proj",)
    assert report.check is not None
    assert report.check.target_matches is True


def test_check_that_fails(
    tmp_path: Path,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def load_nothing(path: Path, *_arguments: object, **_options: object) -> None:
        raise RedrafterError(f"{path} cannot run.")

    monkeypatch.setattr("mlx_redrafter.conversion.check.load", load_nothing)
    out = tmp_path / "out"
    assert main(["--hf-path", str(target), "--mlx-path", str(out), "--check"]) == 1
    text = "".join(capsys.readouterr().out.split())
    assert "bitforbit" in text
    assert f"couldnotbedecoded:{out}cannotrun." in text
    mlx_lm.load(str(out))


def test_check_of_a_target_that_computes_no_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_llama()
    model.model.norm.weight.data[:] = 6e4  # which float16 can hold, but not times a row
    model.lm_head.weight.data *= 1e3
    source, out = write_target(tmp_path / "wide", model), tmp_path / "out"
    words = ["--hf-path", str(source), "--mlx-path", str(out), "--dtype", "float16", "--check"]
    assert main(words) == 1
    text = capsys.readouterr().out
    assert "bit for bit" not in text
    assert "convert it with --dtype bfloat16 or float32." in text
    wide = convert(hf_path=source, mlx_path=tmp_path / "wider", dtype="float32", check=True)
    assert wide.check is not None
    assert wide.check.passed


def test_pocket_models_own_checkpoint_in_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "models")
    recipe = importlib.import_module("recipe.target")
    shape = recipe.Shape(
        vocabulary=VOCAB, width=HIDDEN, layers=2, heads=4, feed_forward=96, positions=128
    )
    model = recipe.Target(shape, torch.Generator().manual_seed(5))
    # Rounded to bfloat16, in which the recipe saves, and larger, so that layers matter.
    for parameter in model.parameters():
        scale = 8 if parameter.dim() == 2 else 1
        parameter.data = (parameter.data * scale).to(torch.bfloat16).float()
    source = tmp_path / "pocket"
    write_tokenizer(source)
    recipe.save_huggingface(model, 1, source)
    head = write_head(tmp_path / "head", make_head())
    convert(hf_path=source, drafter=head, mlx_path=tmp_path / "out")
    loaded, tokenizer = load(tmp_path / "out", dtype=mx.float32)
    ids = tokenizer.encode("What does zip do?")
    with torch.no_grad():
        states = model.hidden(torch.tensor([ids]))
        expected = torch.nn.functional.linear(states, model.embedding.weight).numpy()
    logits, hidden = loaded.target.teach(mx.array([ids]))
    assert np.abs(np.array(logits) - expected).max() < 1e-4
    assert np.abs(np.array(hidden) - states.numpy()).max() < 1e-4
    report = convert(
        hf_path=source, drafter=head, mlx_path=tmp_path / "q", quantize=True, check=True
    )
    assert report.check is not None
    assert report.check.passed
