"""convert.py with GGUF files: alone, in directories and repositories, with a drafter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from gguf_models import HIDDEN, KINDS, VOCAB, make_model, stored_tensors, tiny_gguf, write_gguf
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from mlx_redrafter import load, stream_generate
from mlx_redrafter.conversion import convert, sources
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.gguf import gguf_files
from mlx_redrafter.text import places
from mlx_redrafter.text.drafter_files import save_drafter
from mlx_redrafter.ui.cli.convert import main

IDS = mx.array([[5, 260, 17, 3, 99, 42]])


def entry(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "config.json").read_text())


def logits(directory: Path) -> np.ndarray:
    return np.array(mlx_lm.load(str(directory))[0](IDS).astype(mx.float32))


@pytest.fixture
def drafter(tmp_path: Path) -> Path:
    """A head with random weights for the tiny models."""
    from mlx_redrafter.drafting.config import DrafterConfig
    from mlx_redrafter.drafting.recurrent_drafter import RecurrentDrafter

    config = DrafterConfig(
        hidden_size=HIDDEN, vocab_size=VOCAB, exit_dim=HIDDEN, num_draft_layers=1, rnn=True
    )
    mx.random.seed(3)
    save_drafter(tmp_path / "head", RecurrentDrafter(config))
    return tmp_path / "head"


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        ("Q5_0", {}, "Blocks of Q5_0, which are not kept, became float16: -q quantises these"),
        ("Q5_0", {"quantize": True}, "Blocks of Q5_0 became float16, which -q quantised."),
        ("Q4_0", {"dequantize": True}, "Blocks of Q4_0 became float16."),
        ("Q4_0", {}, "Blocks of Q4_0 were kept bit for bit."),
        ("Q8_0", {"dtype": "float32"}, "Blocks of Q8_0 were kept bit for bit."),
        ("Q4_0", {"dtype": "bfloat16"}, "Blocks of Q4_0 were kept, their scales in bfloat16: "),
    ],
)
def test_what_became_of_blocks_is_told_as_it_was_asked_for(
    tmp_path: Path, kind: str, options: dict[str, Any], told: str
) -> None:
    file = tiny_gguf(tmp_path / "tiny.gguf", matrix_type=kind)
    (note,) = convert(hf_path=file, mlx_path=tmp_path / "out", **options).notes
    assert note.startswith(told)


def test_only_bfloat16_changes_kept_blocks(tmp_path: Path) -> None:
    file = tiny_gguf(tmp_path / "tiny.gguf", matrix_type="Q4_1")
    made = {}
    for dtype in ("float16", "float32", "bfloat16"):
        convert(hf_path=file, mlx_path=tmp_path / dtype, dtype=dtype)
        made[dtype] = mx.load(str(tmp_path / dtype / "model.safetensors"))
    module = "model.layers.0.mlp.up_proj"
    scales = {dtype: arrays[f"{module}.scales"] for dtype, arrays in made.items()}
    assert len({np.array(arrays[f"{module}.weight"]).tobytes() for arrays in made.values()}) == 1
    assert mx.array_equal(scales["float32"], scales["float16"])
    assert mx.array_equal(scales["bfloat16"], scales["float16"].astype(mx.bfloat16))
    assert not mx.array_equal(scales["bfloat16"], scales["float16"])


def test_a_file_becomes_a_bundle_that_drafts(tmp_path: Path, drafter: Path) -> None:
    file = tiny_gguf(tmp_path / "tiny.Q4_0.gguf")
    report = convert(hf_path=file, drafter=drafter, mlx_path=tmp_path / "out", check=True)
    assert any("Q4_0" in note and "bit for bit" in note for note in report.notes)
    assert report.check is not None
    assert report.check.passed
    assert report.check.draft_matches == 1.0
    assert entry(tmp_path / "out")["quantization"]["group_size"] == 32
    model, tokenizer = load(tmp_path / "out", plan=False)
    texts = [
        [r.token for r in stream_generate(model, tokenizer, [5, 6], max_tokens=12, draft=draft)]
        for draft in (True, False)
    ]
    assert texts[0] == texts[1]


def test_default_name_is_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tiny_gguf(tmp_path / "tiny.Q8_0.gguf", matrix_type="Q8_0")
    assert convert(hf_path=file).path == tmp_path / "models" / "tiny.Q8_0"


def test_other_types_are_told_of_and_quantised_again_only_if_asked(tmp_path: Path) -> None:
    config = {**KINDS["llama"].config, "hidden_size": 256, "intermediate_size": 256}
    kind = KINDS["llama"].__class__("llama", config, {}, permuted=True)
    file = write_gguf(tmp_path / "t.gguf", kind, stored_tensors(kind, make_model(kind), "Q4_K"))
    report = convert(hf_path=file, mlx_path=tmp_path / "plain")
    assert any("Q4_K" in note and "-q" in note for note in report.notes)
    assert "quantization" not in entry(tmp_path / "plain")
    convert(hf_path=file, mlx_path=tmp_path / "again", quantize=True, q_bits=4)
    assert entry(tmp_path / "again")["quantization"]["bits"] == 4


def test_kept_layers_stay_when_the_others_are_quantised(tmp_path: Path) -> None:
    kind = KINDS["llama"]
    stored = stored_tensors(kind, make_model(kind), "Q8_0")
    plain = stored_tensors(kind, make_model(kind), "F16")
    name = "model.layers.0.mlp.up_proj"
    stored[f"{name}.weight"] = plain[f"{name}.weight"]
    file = write_gguf(tmp_path / "t.gguf", kind, stored)
    convert(hf_path=file, mlx_path=tmp_path / "out", quantize=True, q_bits=4)
    found = dict(mlx_lm.load(str(tmp_path / "out"))[0].named_modules())
    assert (found[name].bits, found[name].group_size) == (4, 64)
    assert (found["model.layers.1.mlp.up_proj"].bits) == 8
    assert (found["model.layers.1.mlp.up_proj"].group_size) == 32


def test_dequantised_and_other_types(tmp_path: Path) -> None:
    file = tiny_gguf(tmp_path / "t.gguf", matrix_type="Q4_1")
    convert(hf_path=file, mlx_path=tmp_path / "plain", dequantize=True, dtype="float32")
    convert(hf_path=file, mlx_path=tmp_path / "kept", dtype="float32")
    assert "quantization" not in entry(tmp_path / "plain")
    assert "quantization" in entry(tmp_path / "kept")
    assert np.abs(logits(tmp_path / "plain") - logits(tmp_path / "kept")).max() < 1e-4
    convert(hf_path=file, mlx_path=tmp_path / "half", dequantize=True)
    assert entry(tmp_path / "half")["torch_dtype"] == "float16"


def test_several_files_in_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("Q4_0", "Q8_0"):
        tiny_gguf(tmp_path / f"tiny.{kind}.gguf", matrix_type=kind)
    (tmp_path / "mmproj-tiny.gguf").write_bytes(b"not looked at")
    out = tmp_path / "out"
    assert main(["--hf-path", str(tmp_path), "--mlx-path", str(out)]) == 2
    told = capsys.readouterr().err
    assert "tiny.Q4_0.gguf, tiny.Q8_0.gguf" in told
    assert "--gguf-file" in told
    flags = ["--hf-path", str(tmp_path), "--mlx-path", str(out), "--gguf-file"]
    assert main([*flags, "tiny.Q8_0.gguf"]) == 0
    assert entry(out)["quantization"]["bits"] == 8
    assert main([*flags, "tiny.Q6_K.gguf", "--overwrite"]) == 2
    assert "no GGUF file of that name" in capsys.readouterr().err
    assert not (out / "mmproj-tiny.gguf").exists()


def test_shards_that_are_missing_hide_no_other_file(tmp_path: Path) -> None:
    whole = tiny_gguf(tmp_path / "whole.gguf")
    tiny_gguf(tmp_path / "part-00002-of-00003.gguf")
    names = [path.name for path in gguf_files(tmp_path)]
    assert names == ["part-00002-of-00003.gguf", "whole.gguf"]
    convert(hf_path=tmp_path, gguf_file=whole.name, mlx_path=tmp_path / "out")
    with pytest.raises(RedrafterError, match="part-00001-of-00003"):
        convert(hf_path=tmp_path, gguf_file=names[0], mlx_path=tmp_path / "other")


def test_a_repository_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {name: tiny_gguf(tmp_path / name) for name in ("a.Q4_0.gguf", "b.Q8_0.gguf")}
    empty = tmp_path / "snapshot"
    empty.mkdir()

    class Api:
        def list_repo_files(self, repo: str, revision: str | None) -> list[str]:
            return ["README.md", "mmproj.gguf", *files]

    monkeypatch.setattr(places, "HfApi", Api)

    def snapshot(*_: object, allow_patterns: list[str], **__: object) -> str:
        return str(tmp_path if allow_patterns[0] in files else empty)

    monkeypatch.setattr(places, "snapshot_download", snapshot)
    with pytest.raises(RedrafterError, match=r"a\.Q4_0\.gguf, b\.Q8_0\.gguf"):
        convert(hf_path="someone/tiny", mlx_path=tmp_path / "out")
    convert(hf_path="someone/tiny", mlx_path=tmp_path / "out", gguf_file="a.Q4_0.gguf")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    model, _ = load("someone/tiny/b.Q8_0.gguf")
    assert model.name == "b.Q8_0"
    with pytest.raises(RedrafterError, match="someone/tiny/NAME"):
        load("someone/tiny")
    del files["b.Q8_0.gguf"]
    assert load("someone/tiny")[0].name == "a.Q4_0"


def test_a_repository_whose_list_the_hub_does_not_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Api:
        def list_repo_files(self, repo: str, revision: str | None) -> list[str]:
            raise HfHubHTTPError.__bases__[0]("no answer")

    def nothing(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("not here")

    monkeypatch.setattr(places, "HfApi", Api)
    monkeypatch.setattr(places, "snapshot_download", nothing)
    with pytest.raises(RedrafterError, match=r"could not be fetched .*no answer"):
        convert(hf_path="someone/tiny", mlx_path=tmp_path / "out", gguf_file="a.Q4_0.gguf")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    file = tiny_gguf(snapshot / "a.Q4_0.gguf")
    monkeypatch.setattr(places, "snapshot_download", lambda *_, **__: str(snapshot))
    convert(hf_path="someone/tiny", mlx_path=tmp_path / "out", gguf_file="a.Q4_0.gguf")
    file.unlink()
    with pytest.raises(RedrafterError, match=r"a\.Q4_0\.gguf .*no such file"):
        load("someone/tiny/a.Q4_0.gguf")


def test_the_card_names_the_repository_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tiny_gguf(tmp_path / "a.gguf")
    monkeypatch.setattr(sources, "repo_gguf_files", lambda *_: ["a.gguf"])
    monkeypatch.setattr(sources, "fetch_file", lambda *_: file)
    monkeypatch.setattr(sources, "known_file", lambda _: file)
    given = {"someone/tiny@v2": "someone/tiny", "smollm2": places.KNOWN["smollm2"].repo}
    for place, base in given.items():
        name = {"gguf_file": "a.gguf"} if "/" in place else {}
        convert(hf_path=place, mlx_path=tmp_path / "out", overwrite=True, **name)
        assert f"base_model: {base}\n" in (tmp_path / "out" / "README.md").read_text()


def test_a_gguf_file_is_no_drafter(tmp_path: Path) -> None:
    file = tiny_gguf(tmp_path / "t.gguf")
    with pytest.raises(RedrafterError, match="holds targets only"):
        convert(hf_path=file, drafter=file, mlx_path=tmp_path / "out")


def test_loading_converts_once_and_again_when_the_file_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drafter: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    file = tiny_gguf(tmp_path / "t.gguf")
    stages: list[str] = []
    model, _ = load(file, progress=lambda stage, done, total: stages.append(stage))
    assert model.name == "t"
    assert model.drafter is None
    assert set(stages) == {"Converting the GGUF file"}
    stages.clear()
    load(file, progress=lambda stage, done, total: stages.append(stage))
    assert stages == []
    # On a CPU float32 is what has fast kernels.
    assert model.target.model.model.embed_tokens.weight.dtype == mx.float32
    tiny_gguf(file, matrix_type="Q8_0")
    load(file, progress=lambda stage, done, total: stages.append(stage))
    assert stages != []
    made = list((tmp_path / "home" / ".cache" / "mlx_redrafter" / "gguf").iterdir())
    assert len(made) == 1
    drafter.rename(places.drafter_beside(file))
    assert load(file, plan=False)[0].drafter is not None
    assert load(file, drafter=False)[0].drafter is None
