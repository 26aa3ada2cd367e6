"""Adapters of the target load as in mlx-lm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bundles
import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from architecture_files import write_architecture
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.tuner.utils import linear_to_lora_layers

from mlx_redrafter.benchmark.precision import load_at
from mlx_redrafter.drafting.config import DrafterConfig
from mlx_redrafter.drafting.recurrent_drafter import RecurrentDrafter
from mlx_redrafter.drafting.shared_head import output_rows, share_rows
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.text.loading import load
from mlx_redrafter.tree import DraftTree
from mlx_redrafter.ui.cli import benchmark as benchmark_cli
from mlx_redrafter.ui.cli import plan as plan_cli

LORA = {"rank": 4, "scale": 20.0, "dropout": 0.0}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return bundles.make_bundle(tmp_path / "tiny")


@pytest.fixture
def adapter(bundle: Path, tmp_path: Path) -> Path:
    """A LoRA adapter of random weights."""
    model = mlx_lm.load(str(bundle))[0]
    model.freeze()
    linear_to_lora_layers(model, 2, LORA)
    rng = np.random.default_rng(0)
    weights = {
        name: mx.array(rng.standard_normal(value.shape).astype(np.float32) * 0.1)
        for name, value in tree_flatten(model.trainable_parameters())
    }
    directory = tmp_path / "adapter"
    directory.mkdir()
    mx.save_safetensors(str(directory / "adapters.safetensors"), weights)
    config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": LORA}
    (directory / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    return directory


def test_an_adapter_loads_as_in_mlx_lm(bundle: Path, adapter: Path) -> None:
    theirs = mlx_lm.load(str(bundle), adapter_path=str(adapter))[0]
    theirs.set_dtype(mx.float32)
    with_adapter = load(bundle, dtype=mx.float32, adapter_path=adapter)[0]
    without = load(bundle, dtype=mx.float32)[0]
    tokens = mx.array([[3, 4, 5, 6]])
    expected = theirs(tokens)
    assert mx.allclose(with_adapter.target.model(tokens), expected, rtol=1e-4, atol=1e-4)
    assert not mx.allclose(without.target.model(tokens), expected, rtol=1e-2, atol=1e-2)
    prompt = [3, 4, 5, 6, 7]
    text = [int(token) for token, _ in generate_step(mx.array(prompt), theirs, max_tokens=12)]
    drafted = decode(with_adapter, prompt, DecodingConfig(max_tokens=12))
    assert [one.token for one in drafted] == text


def adapter_of(model: Path, directory: Path, kind: str, keys: list[str] | None) -> Path:
    """An adapter of random weights for the layers that ``keys`` names, by default every one."""
    parameters = LORA if keys is None else {**LORA, "scale": 2.0, "keys": keys}
    target = mlx_lm.load(str(model))[0]
    target.freeze()
    linear_to_lora_layers(target, 2, parameters, use_dora=kind == "dora")
    rng = np.random.default_rng(0)
    weights = {
        name: value if name.endswith(".m") else mx.array(rng.normal(0, 0.1, value.shape))
        for name, value in tree_flatten(target.trainable_parameters())
        if name.rsplit(".", 1)[-1] in ("lora_a", "lora_b", "m")
    }
    directory.mkdir()
    mx.save_safetensors(str(directory / "adapters.safetensors"), weights)
    config = {"fine_tune_type": kind, "num_layers": 2, "lora_parameters": parameters}
    (directory / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    return directory


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_adapters_of_the_output_layer(tmp_path: Path, kind: str, tied: bool) -> None:
    if tied:
        model, keys = bundles.make_bundle(tmp_path / "tiny"), ["model.embed_tokens"]
    else:
        model, keys = write_architecture(tmp_path / "tiny", "llama", drafter=True), ["lm_head"]
    path = adapter_of(model, tmp_path / "adapter", kind, keys)
    theirs = mlx_lm.load(str(model), adapter_path=str(path))[0]
    prompt = [30, 40, 50, 60, 70]
    text = [int(token) for token, _ in generate_step(mx.array(prompt), theirs, max_tokens=12)]
    loaded = load(model, dtype=mx.float32, adapter_path=path, plan=False)[0]
    assert loaded.target.refusal is None
    assert loaded.head is not None
    assert [one.token for one in decode(loaded, prompt, DecodingConfig(max_tokens=12))] == text
    target = loaded.target
    logits, hidden = target.verify(DraftTree.root_only(mx.array([30])), target.make_cache())
    rows = output_rows(target)
    assert rows is not None
    assert mx.allclose(hidden @ rows.T, logits, rtol=1e-4, atol=1e-4)
    shape = DrafterConfig(
        hidden_size=target.hidden_size,
        vocab_size=target.vocab_size,
        exit_dim=target.hidden_size,
        num_draft_layers=0,
        shared_rows=True,
    )
    shared = RecurrentDrafter(shape)
    share_rows(shared, target)
    assert mx.allclose(shared.output(hidden), logits, rtol=1e-4, atol=1e-4)


def test_layers_that_a_model_cannot_run_with_an_adapter(tmp_path: Path) -> None:
    model = write_architecture(tmp_path / "afm7", "afm7")
    path = adapter_of(model, tmp_path / "adapter", "dora", None)
    with pytest.raises(RedrafterError, match=r"with the adapter .* cannot be loaded .* without"):
        load(model, adapter_path=path)


def test_a_bundle_may_be_loaded_without_its_drafter(bundle: Path) -> None:
    assert load(bundle)[0].drafter is not None
    assert load(bundle, drafter=False)[0].drafter is None


@pytest.mark.parametrize(
    ("config", "lacks"),
    [
        ({}, "num_layers"),
        ({"peft_type": "LORA", "r": 8, "lora_alpha": 16}, "num_layers"),
        ({"num_layers": "4", "lora_parameters": {}}, "num_layers"),
        ({"num_layers": 4}, "a number as rank"),
        ({"num_layers": 4, "lora_parameters": {"rank": 8, "dropout": 0.0}}, "a number as scale"),
    ],
)
def test_an_adapter_that_is_none_of_mlx_lms_is_named_so(
    bundle: Path, adapter: Path, config: dict[str, Any], lacks: str
) -> None:
    (adapter / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(RedrafterError, match=f"has no .*{lacks}, so it is none of mlx-lm's"):
        load(bundle, adapter_path=adapter)


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapters.safetensors"])
def test_a_directory_that_is_no_adapter_is_refused(
    bundle: Path, adapter: Path, missing: str
) -> None:
    (adapter / missing).unlink()
    with pytest.raises(RedrafterError, match=f"has no {missing}, so it is not an adapter"):
        load(bundle, adapter_path=adapter)


def test_an_adapter_of_another_model_is_refused_in_one_sentence(
    bundle: Path, adapter: Path
) -> None:
    mx.save_safetensors(
        str(adapter / "adapters.safetensors"),
        {f"model.layers.{n}.self_attn.q_proj.lora_a": mx.zeros((4, 4)) for n in (8, 9)},
    )
    with pytest.raises(RedrafterError, match="with the adapter") as caught:
        load(bundle, adapter_path=adapter)
    assert "\n" not in str(caught.value)


def test_an_adapter_is_measured_at_any_precision_but_quantised_anew(
    bundle: Path, adapter: Path
) -> None:
    tokens = mx.array([[3, 4, 5, 6]])
    expected = load(bundle, adapter_path=adapter)[0].target.model(tokens)
    measured = load_at(str(bundle), "float32", adapter_path=str(adapter))[0]
    assert mx.array_equal(measured.target.model(tokens), expected)
    with pytest.raises(RedrafterError, match=r"not quantised for 4bit: fuse"):
        load_at(str(bundle), "4bit", adapter_path=str(adapter))


def test_commands_take_an_adapter(bundle: Path, adapter: Path, capsys, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    flags = ["--adapter-path", str(adapter), "--max-tokens", "4", "--repeats", "1"]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the cat\n", "utf-8")
    rest = ["--prompts", str(prompts), "--json", str(report), "--no-plots"]
    assert benchmark_cli.main(["run", "--model", str(bundle), *flags, *rest]) == 0
    assert json.loads(report.read_text())["settings"]["adapter_path"] == str(adapter)
    (adapter / "adapters.safetensors").unlink()
    for call in (
        lambda: benchmark_cli.main(["run", "--model", str(bundle), *flags, *rest]),
        lambda: plan_cli.main([str(bundle), "--adapter-path", str(adapter)]),
    ):
        capsys.readouterr()
        assert call() == 2
        assert "has no adapters.safetensors" in capsys.readouterr().err
