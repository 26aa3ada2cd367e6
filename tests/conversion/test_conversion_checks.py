"""What a conversion refuses: every refusal names what was expected and what was found."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from conversion_models import (
    HIDDEN,
    VOCAB,
    make_head,
    make_llama,
    torch,
    write_head,
    write_target,
)
from huggingface_hub.errors import LocalEntryNotFoundError

from mlx_redrafter.conversion import convert, staging
from mlx_redrafter.conversion.options import Options
from mlx_redrafter.conversion.sources import TRAINER_FILES, find_checkpoint
from mlx_redrafter.drafting.config import MODEL_TYPE
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.text.drafter_files import load_drafter
from mlx_redrafter.text.loading import load
from mlx_redrafter.text.places import locate
from mlx_redrafter.ui.cli.convert import main

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_target(tmp_path_factory.mktemp("checkpoints") / "tiny-llama")


def refusal(out: Path, **options: Any) -> str:
    """The sentence of a refused conversion, which leaves nothing behind."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(RedrafterError) as caught:
        convert(mlx_path=out, **options)
    assert sorted(out.parent.iterdir()) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed_head(directory: Path, change: dict[str, Any], remove: str | None = None) -> Path:
    """A head's directory whose tensors were tampered with."""
    head = make_head()
    write_head(directory, head, "bin")
    tensors = {k: v for k, v in head.state_dict().items() if k != remove} | change
    torch.save(tensors, directory / "pytorch_model.bin")
    return directory


def test_missing_tensor(tmp_path: Path, target: Path) -> None:
    head = changed_head(tmp_path / "head", {}, remove="rnn_u.bias")
    message = refusal(tmp_path / "out", hf_path=target, drafter=head)
    assert "lacks the tensor 'rnn_u.bias'" in message
    assert f"({HIDDEN},)" in message


def test_renamed_tensor(tmp_path: Path, target: Path) -> None:
    change = {"rnn_u.offset": torch.zeros(HIDDEN)}
    head = changed_head(tmp_path / "head", change, remove="rnn_u.bias")
    message = refusal(tmp_path / "out", hf_path=target, drafter=head)
    assert "'rnn_u.bias'" in message
    assert f"found 'rnn_u.offset' ({HIDDEN},)" in message


def test_extra_tensor(tmp_path: Path, target: Path) -> None:
    head = changed_head(tmp_path / "head", {"lm_head.3.weight": torch.zeros(4, 5)})
    message = refusal(tmp_path / "out", hf_path=target, drafter=head)
    assert "holds a tensor 'lm_head.3.weight' of shape (4, 5)" in message


def test_misshapen_tensor(tmp_path: Path, target: Path) -> None:
    head = changed_head(tmp_path / "head", {"rnn_w.weight": torch.zeros(HIDDEN, 7)})
    message = refusal(tmp_path / "out", hf_path=target, drafter=head)
    assert "'rnn_w.weight' has shape (64, 7)" in message
    assert "calls for (64, 64)" in message


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_drafter_that_is_not_finite(tmp_path: Path, target: Path, bad: float) -> None:
    weight = torch.zeros(HIDDEN, HIDDEN)
    weight[1, 2] = bad
    head = changed_head(tmp_path / "head", {"rnn_w.weight": weight})
    message = refusal(tmp_path / "out", hf_path=target, drafter=head)
    assert "'rnn_w.weight' (64, 64) holds 1 NaN or infinite" in message


@pytest.mark.parametrize("layout", ["safetensors-sharded", "bin"])
def test_target_that_is_not_finite(tmp_path: Path, layout: str) -> None:
    model = make_llama()
    model.model.layers[1].mlp.up_proj.weight.data[0, :3] = float("nan")
    source = write_target(tmp_path / "target", model, layout)
    message = refusal(tmp_path / "out", hf_path=source)
    assert "'model.layers.1.mlp.up_proj.weight' (128, 64) holds 3 NaN" in message


def test_target_with_bad_tensors(tmp_path: Path) -> None:
    model = make_llama()
    source = write_target(tmp_path / "target", model, "bin")
    name = "model.layers.0.mlp.up_proj.weight"
    for tensors, expected in (
        ({k: v for k, v in model.state_dict().items() if k != name}, f"lacks the tensor '{name}'"),
        (model.state_dict() | {name: torch.zeros(3, 3)}, f"'{name}' has shape (3, 3)"),
        (model.state_dict() | {"model.surplus": torch.zeros(2)}, "'model.surplus' of shape (2,)"),
    ):
        torch.save(tensors, source / "pytorch_model.bin")
        assert expected in refusal(tmp_path / "out", hf_path=source)


def test_overflow_in_the_new_precision(tmp_path: Path) -> None:
    model = make_llama()
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e6
    source = write_target(tmp_path / "target", model)
    message = refusal(tmp_path / "out", hf_path=source, dtype="float16")
    assert "'model.layers.0.mlp.up_proj.weight'" in message
    assert "overflows in float16" in message


def test_other_precisions(tmp_path: Path, target: Path) -> None:
    weight = torch.zeros(HIDDEN, HIDDEN, dtype=torch.float64)
    head = changed_head(tmp_path / "head", {"rnn_w.weight": weight})
    message = refusal(tmp_path / "out", hf_path=target, drafter=head)
    assert "'rnn_w.weight'" in message
    assert "torch.float64, expected float32, float16 or bfloat16" in message


def test_double_precision_target(tmp_path: Path) -> None:
    source = write_target(tmp_path / "target", make_llama(torch.float64))
    message = refusal(tmp_path / "out", hf_path=source)
    assert "stored as F64, expected F32 or F16 or BF16" in message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"hidden_size": 32}, "hidden size of 32"), ({"vocab_size": 130}, "vocabulary size of 130")],
)
def test_drafter_of_another_target(
    tmp_path: Path, target: Path, changes: dict[str, int], expected: str
) -> None:
    head = write_head(tmp_path / "head", make_head(**changes))
    message = refusal(tmp_path / "out", hf_path=target, drafter=head)
    assert expected in message
    assert f"is {HIDDEN}" in message or f"is {VOCAB}" in message


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, "has no config.json"),
        ("{", "not readable JSON"),
        ("[]", "no JSON object"),
        ('{"model_type": "llama", "hidden_size": 64}', "'llama' model, not a drafter"),
        (json.dumps({"model_type": MODEL_TYPE, "hidden_size": 64}), "vocab_size=None"),
        (json.dumps({"model_type": MODEL_TYPE, "hidden_size": -1}), "hidden_size=-1"),
    ],
)
def test_drafter_config(tmp_path: Path, target: Path, config: str | None, expected: str) -> None:
    head = write_head(tmp_path / "head", make_head())
    if config is None:
        (head / "config.json").unlink()
    else:
        (head / "config.json").write_text(config)
    assert expected in refusal(tmp_path / "out", hf_path=target, drafter=head)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, "has no config.json"),
        ("{}", "no model_type"),
        ('{"model_type": "llama"}', "missing keys: 'hidden_size'"),
        ('{"model_type": "no_such_model"}', "does not know the model type 'no_such_model'"),
    ],
)
def test_target_config(tmp_path: Path, config: str | None, expected: str) -> None:
    source = write_target(tmp_path / "target")
    if config is None:
        (source / "config.json").unlink()
    else:
        (source / "config.json").write_text(config)
    assert expected in refusal(tmp_path / "out", hf_path=source)


def test_target_without_tokenizer(tmp_path: Path) -> None:
    source = write_target(tmp_path / "target")
    for path in source.glob("*token*"):
        path.unlink()
    assert "tokenizer cannot be loaded" in refusal(tmp_path / "out", hf_path=source)


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("form", ["archive", "legacy", "bare pickle"])
def test_malicious_pickle(tmp_path: Path, target: Path, form: str) -> None:
    values = {"rnn_u.weight": torch.zeros(2), "x": Malicious(tmp_path / "harm")}
    file = tmp_path / "head.pt"
    if form == "bare pickle":
        file.write_bytes(pickle.dumps({"x": Malicious(tmp_path / "harm")}))
    else:
        torch.save(values, file, _use_new_zipfile_serialization=form == "archive")
    message = refusal(tmp_path / "out", hf_path=target, drafter=file)
    assert "carries code" in message
    assert "mkdir" in message
    assert not (tmp_path / "harm").exists()


def test_whole_pickled_module(tmp_path: Path, target: Path) -> None:
    torch.save(torch.nn.Linear(3, 3), tmp_path / "head.pt")
    message = refusal(tmp_path / "out", hf_path=target, drafter=tmp_path / "head.pt")
    assert "carries code ('torch.nn.modules.linear.Linear')" in message
    assert "state_dict()" in message


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_truncated_file(tmp_path: Path, layout: str, share: float) -> None:
    source = write_target(tmp_path / "target", layout=layout)
    suffix = {"bin": "bin"}.get(layout, "safetensors")
    file = next(source.glob(f"*.{suffix}"))
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    message = refusal(tmp_path / "out", hf_path=source)
    assert "truncated or damaged" in message
    assert file.name in message


def test_files_that_are_no_checkpoints(tmp_path: Path, target: Path) -> None:
    pointer = tmp_path / "head.bin"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "Git LFS" in refusal(tmp_path / "out", hf_path=target, drafter=pointer)
    torch.save([1, 2], pointer)
    assert "no dictionary of tensors" in refusal(tmp_path / "out", hf_path=target, drafter=pointer)
    torch.save({"a": torch.zeros(1), "b": 3}, pointer)
    message = refusal(tmp_path / "out", hf_path=target, drafter=pointer)
    assert "'b' of type int" in message
    torch.save({"weight": torch.zeros(3, 3)}, pointer)
    assert "not a recurrent drafter" in refusal(tmp_path / "out", hf_path=target, drafter=pointer)
    text = tmp_path / "head.txt"
    text.write_text("")
    assert "not a weight file" in refusal(tmp_path / "out", hf_path=target, drafter=text)


def test_missing_shard(tmp_path: Path) -> None:
    source = write_target(tmp_path / "target", layout="bin-sharded")
    (source / "pytorch_model-00002-of-00002.bin").unlink()
    message = refusal(tmp_path / "out", hf_path=source)
    assert "'pytorch_model-00002-of-00002.bin'" in message
    assert "1 of 2 shards" in message


def test_token_map(tmp_path: Path, target: Path) -> None:
    head = write_head(tmp_path / "head", make_head(vocab_size=3), "bin")
    config = json.loads((head / "config.json").read_text())
    config |= {"vocab_size": VOCAB, "draft_vocab_size": 3}
    (head / "config.json").write_text(json.dumps(config))
    for tokens in ([1, 3, 2], [0, 1, VOCAB], [-1, 0, 1], [2, 2, 3]):
        tensors = make_head(vocab_size=3).state_dict() | {"draft_tokens": torch.tensor(tokens)}
        torch.save(tensors, head / "pytorch_model.bin")
        message = refusal(tmp_path / "out", hf_path=target, drafter=head)
        assert "draft_tokens have to be 3 token ids from 0 to 127 in ascending order" in message


def test_torch_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_target(tmp_path / "target", layout="bin")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    message = refusal(tmp_path / "out", hf_path=source)
    assert "pip install torch" in message


def test_places_that_do_not_exist(tmp_path: Path, target: Path) -> None:
    out = tmp_path / "out"
    assert "does not exist" in refusal(out, hf_path=tmp_path / "nowhere")
    assert "does not exist" in refusal(out, hf_path=target, drafter="./nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no weights" in refusal(out, hf_path=empty)
    assert "is a file" in refusal(out, hf_path=next(target.glob("*.safetensors")))


def test_hub_repository(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, list[str]]] = []

    def snapshot_download(repo: str, revision: str | None, allow_patterns: list[str]) -> str:
        calls.append((repo, allow_patterns))
        if repo == "nobody/nothing":
            raise LocalEntryNotFoundError("offline")
        return str(target)

    monkeypatch.setattr("mlx_redrafter.text.places.snapshot_download", snapshot_download)
    found = find_checkpoint("someone/tiny", "The target")
    assert found.name == "someone/tiny"
    assert len(calls) == 1
    assert "model*.safetensors" in calls[0][1]
    assert "*.bin" not in calls[0][1]
    convert(hf_path="someone/tiny", mlx_path=tmp_path / "out")
    assert "base_model: someone/tiny" in (tmp_path / "out" / "README.md").read_text()
    message = refusal(tmp_path / "other", hf_path="nobody/nothing")
    assert "neither a local path nor a repository" in message


def test_trainer_files_are_no_weights() -> None:
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth"):
        assert TRAINER_FILES.match(name)
    for name in ("pytorch_model.bin", "drafter.pt", "model.safetensors"):
        assert not TRAINER_FILES.match(name)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "Nothing to convert"),
        ({"drafter": "d"}, "existing bundle"),
        ({"hf_path": "t", "quantize": True, "dequantize": True}, "not both"),
        ({"hf_path": "t", "q_bits": 4}, "add -q"),
        ({"hf_path": "t", "q_mode": "mxfp4"}, "add -q"),
        ({"hf_path": "t", "quantize": True, "q_bits": 7}, "--q-bits is 7"),
        ({"hf_path": "t", "quantize": True, "q_group_size": 48}, "choose 32 or 64 or 128"),
        ({"hf_path": "t", "quantize": True, "q_mode": "mxfp4", "q_bits": 8}, "choose 4"),
        ({"hf_path": "t", "quantize": True, "q_mode": "int4"}, "--q-mode is int4"),
        ({"hf_path": "t", "quantize": True, "quant_predicate": "mixed"}, "mixed_2_6"),
        (
            {"hf_path": "t", "quantize": True, "q_mode": "mxfp8", "quant_predicate": "mixed_3_6"},
            "affine only",
        ),
        ({"hf_path": "t", "quantize": True, "q_bits": "4"}, "q_bits has to be a whole number"),
        ({"hf_path": "t", "drafter_q_bits": "4"}, "--drafter-q-bits is '4'"),
        ({"hf_path": "t", "drafter_q_bits": 3}, "choose 4, 5, 6, 8 or none"),
        ({"hf_path": "t", "drafter_rnn_q_bits": "all"}, "choose 4, 5, 6, 8 or none"),
        ({"hf_path": "t", "dtype": "int8"}, "--dtype is int8"),
        ({"hf_path": "t", "dequantize": True, "drafter_q_bits": 4}, "not both"),
    ],
)
def test_options(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(RedrafterError, match=expected):
        Options(**options).validate()


def test_drafter_bits_without_drafter(tmp_path: Path, target: Path) -> None:
    message = refusal(tmp_path / "out", hf_path=target, drafter_q_bits=8)
    assert "there is no drafter" in message


def test_command_line_refuses_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--hf-path", str(tmp_path / "nowhere"), "--mlx-path", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("convert.py: The target ")
    assert error.count("\n") == 1
    for wrong in (["--q-mode", "int4"], ["--drafter-q-bits", "7"], ["--no-such-flag"]):
        with pytest.raises(SystemExit) as caught:
            main(wrong)
        assert caught.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_command_line_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    assert "--hf-path" in text
    assert "--drafter" in text


def test_command_line_converts(
    tmp_path: Path, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = write_head(tmp_path / "head", make_head())
    out = tmp_path / "out"
    flags = ["--hf-path", str(target), "--drafter", str(head), "--mlx-path", str(out)]
    quantised = ["-q", "--q-bits", "4", "--q-group-size", "64", "--q-mode", "affine"]
    assert main([*flags, *quantised, "--drafter-q-bits", "8", "--check"]) == 0
    text = capsys.readouterr().out
    for expected in ("bits per weight", "tokens per step", "bit for bit", "chat.py --model"):
        assert expected in text
    assert (out / "drafter" / "model.safetensors").is_file()
    assert main([*flags, "--dtype", "bfloat16"]) == 2
    assert "exists already: pass --overwrite" in capsys.readouterr().err
    assert main([*flags, "--dtype", "bfloat16", "--overwrite"]) == 0
    assert main([*flags, "-q", "--quant-predicate", "mixed_4_6", "--overwrite"]) == 0


def copied(target: Path, directory: Path) -> Path:
    """A checkpoint's files, to be tampered with."""
    shutil.copytree(target, directory)
    return directory


def test_an_index_that_names_a_file_outside(tmp_path: Path, target: Path) -> None:
    source = copied(target, tmp_path / "source")
    (source / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    for name in ("../elsewhere.safetensors", str(tmp_path / "elsewhere.safetensors")):
        index = {"weight_map": {"model.norm.weight": name}}
        (source / "model.safetensors.index.json").write_text(json.dumps(index))
        told = refusal(tmp_path / "out", hf_path=source)
        assert "leads out of the checkpoint" in told
        assert "elsewhere.safetensors" in told


@pytest.mark.parametrize("name", ["zero\0byte", "\ud800half", "long" * 1000])
def test_an_index_that_names_what_no_file_can_be_called(
    tmp_path: Path, target: Path, name: str
) -> None:
    source = copied(target, tmp_path / "source")
    index = {"weight_map": {"a": "model.safetensors", "b": f"{name}.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "index.json names" in refusal(tmp_path / "out", hf_path=source)


@pytest.mark.parametrize("layout", ["safetensors-sharded", "bin-sharded"])
@pytest.mark.parametrize("indexed", [True, False])
def test_the_makers_own_form_beside_the_weights_is_not_read(
    tmp_path: Path, layout: str, indexed: bool
) -> None:
    """As Mistral's repositories hold it, whose tensors have other names and lie in other files."""
    source = write_target(tmp_path / "source", layout=layout)
    (index,) = source.glob("*.index.json")
    kind = Path(index.name.removesuffix(".index.json")).suffix
    own = {name: f"consolidated-{i:05d}-of-00002{kind}" for i, name in ((1, "a"), (2, "b"))}
    for name in own.values():
        shutil.copy(next(source.glob(f"*-00001-of-*{kind}")), source / name)
    (source / f"consolidated{kind}.index.json").write_text(json.dumps({"weight_map": own}))
    if not indexed:
        for path in source.glob("*.index.json"):
            path.unlink()
    files = find_checkpoint(str(source), "The target").files
    assert files == tuple(sorted(source.glob(f"*model-*{kind}")))


@pytest.mark.skipif(sys.platform == "darwin", reason="names are UTF-8 there")
def test_names_that_are_no_utf8(tmp_path: Path, target: Path) -> None:
    odd = tmp_path / os.fsdecode(b"odd\xff")
    assert "no UTF-8" in refusal(odd, hf_path=target)
    convert(hf_path=copied(target, odd), mlx_path=tmp_path / "out")
    assert (tmp_path / "out" / "config.json").is_file()
    with pytest.raises(RedrafterError, match="no UTF-8"):
        locate(odd)


@pytest.mark.parametrize("name", ["evil.py", "folder/evil.txt", "model.safetensors"])
def test_links_that_lead_outside_are_not_followed(tmp_path: Path, target: Path, name: str) -> None:
    source = copied(target, tmp_path / "source")
    secret = tmp_path / "secret"
    secret.write_text("not yours")
    (source / name).parent.mkdir(exist_ok=True)
    (source / name).unlink(missing_ok=True)
    (source / name).symlink_to(secret)
    told = refusal(tmp_path / "out", hf_path=source)
    assert name in told
    assert "leads out of the checkpoint" in told


def as_snapshot(directory: Path, store: Path) -> Path:
    """A directory's files as the Hub's cache keeps them: links to a store of blobs."""
    snapshot = store / "snapshots" / "0123abcd"
    (store / "blobs").mkdir(parents=True)
    for number, path in enumerate(sorted(p for p in directory.rglob("*") if p.is_file())):
        blob = store / "blobs" / str(number)
        shutil.copy(path, blob)
        link = snapshot / path.relative_to(directory)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def test_the_links_of_a_hub_snapshot_are_its_own(tmp_path: Path, target: Path) -> None:
    snapshot = as_snapshot(target, tmp_path / "models--someone--tiny")
    convert(hf_path=snapshot, mlx_path=tmp_path / "out")
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    (snapshot / "evil.py").symlink_to("/etc/hostname")
    assert "evil.py" in refusal(tmp_path / "other", hf_path=snapshot)


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_a_quantised_drafter_of_a_hub_snapshot(
    tmp_path: Path, target: Path, inside: bool, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files that its links lead to have other names; without links they are copies."""
    head = write_head(tmp_path / "head", make_head())
    convert(hf_path=target, drafter=head, mlx_path=tmp_path / "bundle", drafter_q_bits=8)
    bundle = as_snapshot(tmp_path / "bundle", tmp_path / "models--someone--bundle")
    if not links:
        monkeypatch.setattr(staging, "_link", lambda link, path: shutil.copyfile(path, link))
    drafter = bundle if inside else bundle / "drafter"
    convert(hf_path=target, drafter=drafter, mlx_path=tmp_path / "out")
    found, given = (tmp_path / name / "drafter" for name in ("out", "bundle"))
    assert load_drafter(found).config.quantization == load_drafter(given).config.quantization
    assert (found / "model.safetensors").read_bytes() == (given / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.gguf"])
def test_pipes_are_no_weights(tmp_path: Path, target: Path, name: str) -> None:
    source = copied(target, tmp_path / "source")
    (source / "model.safetensors").unlink()
    os.mkfifo(source / name)
    told = refusal(tmp_path / "out", hf_path=source)
    assert "not a regular file" in told or "holds no weights" in told
    assert "not a regular file" in refusal(tmp_path / "out", hf_path=target, drafter=source / name)


def test_devices_are_no_weights(tmp_path: Path, target: Path) -> None:
    (tmp_path / "head.safetensors").symlink_to("/dev/zero")
    told = refusal(tmp_path / "out", hf_path=target, drafter=tmp_path / "head.safetensors")
    assert "not a regular file" in told


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    model = make_llama()
    source = write_target(tmp_path / "source", model, "bin")
    tensors = model.state_dict()
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.int32)
    torch.save(tensors, source / "pytorch_model.bin")
    told = refusal(tmp_path / "out", hf_path=source)
    assert name in told
    assert "whole numbers" in told


def test_more_layers_than_tensors_are_not_built(tmp_path: Path, target: Path) -> None:
    source = copied(target, tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 10**9}))
    assert "1,000,000,000 as num_hidden_layers" in refusal(tmp_path / "out", hf_path=source)
    with pytest.raises(RedrafterError, match="1,000,000,000 as num_hidden_layers"):
        load(source)
    head = write_head(tmp_path / "head", make_head())
    config = json.loads((head / "config.json").read_text())
    (head / "config.json").write_text(json.dumps({**config, "num_draft_layers": 10**9}))
    words = "1,000,000,000 as num_draft_layers"
    assert words in refusal(tmp_path / "out", hf_path=target, drafter=head)
    with pytest.raises(RedrafterError, match=words):
        load_drafter(head)


def test_what_lies_beside_the_weights_is_kept(tmp_path: Path, target: Path) -> None:
    source = copied(target, tmp_path / "source")
    kept = ["merges/more.txt", "additional_chat_templates/tools.jinja", "LICENSE", "tekken.json"]
    left = ["onnx/model.onnx", "optimizer.pt", ".cache/x", "tf_model.h5", "drafter-old.gguf"]
    for name in (*kept, *left):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(name)
    convert(hf_path=source, mlx_path=tmp_path / "out")
    for name in kept:
        assert (tmp_path / "out" / name).read_text() == name
    for name in left:
        assert not (tmp_path / "out" / name).exists()
    _, tokenizer = load(tmp_path / "out")
    assert tokenizer.chat_template["tools"] == kept[1]
