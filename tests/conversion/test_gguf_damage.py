"""Truncated, fuzzed and hostile GGUF files get one sentence that names the file."""

from __future__ import annotations

import os
import random
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from gguf_conversions import refusal
from gguf_models import (
    KINDS,
    TOKENS,
    gguf,
    make_model,
    quantised,
    stored_tensors,
    tiny_gguf,
    write_gguf,
)

from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.gguf import read_gguf, write_model
from mlx_redrafter.text.places import locate, silent
from mlx_redrafter.ui.cli.convert import main


def header(*parts: Any) -> bytes:
    """GGUF's magic, then ("Q", 3) and the like packed, and bytes as they are."""
    packed = [p if isinstance(p, bytes) else struct.pack(f"<{p[0]}", p[1]) for p in parts]
    return b"GGUF" + b"".join(packed)


def named(name: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name


HUGE = 1 << 62
HOSTILE = {
    "empty": b"",
    "magic only": b"GGUF",
    "another kind": b"PK\x03\x04" + bytes(64),
    "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 99\n",
    "version 99": header(("I", 99), ("Q", 0), ("Q", 0)),
    "other byte order": b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + bytes(99),
    "endless tensors": header(("I", 3), ("Q", HUGE), ("Q", 0), bytes(99)),
    "endless entries": header(("I", 3), ("Q", 0), ("Q", HUGE), bytes(99)),
    "endless name": header(("I", 3), ("Q", 0), ("Q", 1), ("Q", HUGE), bytes(99)),
    "endless text": header(("I", 3), ("Q", 0), ("Q", 1), named(b"k"), ("I", 8), ("Q", HUGE)),
    "endless bytes": header(
        ("I", 3), ("Q", 0), ("Q", 1), named(b"k"), ("I", 9), ("I", 0), ("Q", HUGE)
    ),
    "endless strings": header(
        ("I", 3), ("Q", 0), ("Q", 1), named(b"k"), ("I", 9), ("I", 8), ("Q", 1 << 40), bytes(99)
    ),
    "arrays of arrays": header(
        ("I", 3), ("Q", 0), ("Q", 1), named(b"k"), ("I", 9), ("I", 9), ("Q", 1), bytes(99)
    ),
    "no such type": header(("I", 3), ("Q", 0), ("Q", 1), named(b"k"), ("I", 77), bytes(99)),
    "name that is no text": header(("I", 3), ("Q", 0), ("Q", 1), named(b"\xff\xfe"), bytes(99)),
    "alignment 0": header(
        ("I", 3), ("Q", 0), ("Q", 1), named(b"general.alignment"), ("I", 4), ("I", 0)
    ),
    "many dimensions": header(
        ("I", 3), ("Q", 1), ("Q", 0), named(b"x"), ("I", 1 << 30), bytes(99)
    ),
    "shape that wraps round": header(
        ("I", 3), ("Q", 1), ("Q", 0), named(b"x"), ("I", 2), ("Q", 1 << 32), ("Q", 1 << 32),
        ("I", 0), ("Q", 0), bytes(99),
    ),
    "tensor outside": header(
        ("I", 3), ("Q", 1), ("Q", 0), named(b"x"), ("I", 1), ("Q", 4), ("I", 0), ("Q", HUGE),
        bytes(99),
    ),
    "no such tensor type": header(
        ("I", 3), ("Q", 1), ("Q", 0), named(b"x"), ("I", 1), ("Q", 4), ("I", 99), ("Q", 0),
        bytes(99),
    ),
    "half a block": header(
        ("I", 3), ("Q", 1), ("Q", 0), named(b"x"), ("I", 1), ("Q", 33), ("I", 2), ("Q", 0),
        bytes(99),
    ),
    "nothing in it": header(("I", 3), ("Q", 0), ("Q", 0)),
    "more values than memory": header(
        ("I", 3), ("Q", 0), ("Q", 1), named(b"k"), ("I", 9), ("I", 0), ("Q", 1 << 23),
        bytes((1 << 23) + 99),
    ),
    "more strings than memory": header(
        ("I", 3), ("Q", 0), ("Q", 1), named(b"k"), ("I", 9), ("I", 8), ("Q", 1 << 23),
        bytes((1 << 26) + 99),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers(tmp_path: Path, name: str) -> None:
    (tmp_path / "evil.gguf").write_bytes(HOSTILE[name])
    refusal(tmp_path / "evil.gguf")


def test_files_of_big_endian_machines_are_not_damaged(tmp_path: Path) -> None:
    (tmp_path / "turned.gguf").write_bytes(HOSTILE["other byte order"])
    text = refusal(tmp_path / "turned.gguf")
    assert "big-endian" in text
    assert "damaged" not in text


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return tiny_gguf(tmp_path_factory.mktemp("whole") / "t.gguf").read_bytes()


@pytest.mark.parametrize("share", [0.001, 0.02, 0.1, 0.3, 0.6, 0.95, 0.999])
def test_truncated(tmp_path: Path, whole: bytes, share: float) -> None:
    file = tmp_path / "cut.gguf"
    file.write_bytes(whole[: int(len(whole) * share)])
    assert "download it again" in refusal(file)


@pytest.mark.parametrize("seed", range(60))
def test_fuzzed(tmp_path: Path, whole: bytes, seed: int) -> None:
    """Bytes of the header changed: the file is refused in a sentence, or still a model."""
    rng = random.Random(seed)
    data = bytearray(whole)
    reach = [64, 600, 3000, 12000][seed % 4]
    for _ in range(1 + seed % 5):
        data[rng.randrange(4, reach)] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    file = tmp_path / "fuzzed.gguf"
    file.write_bytes(data)
    out = tmp_path / "out"
    out.mkdir()
    told = ""
    try:
        write_model(read_gguf(file), out, silent)
    except RedrafterError as error:
        told = str(error)
    assert told == "" or ("fuzzed.gguf" in told and "\n" not in told)


@pytest.mark.parametrize(
    "changes",
    [
        {"block_count": None},
        {"block_count": 4_000_000_000},
        {"block_count": 0},
        {"attention.head_count": 0},
        {"attention.head_count": 3_000_000},
        {"attention.head_count_kv": 0},
        {"attention.head_count_kv": 3},
        {"attention.key_length": 1 << 31},
        {"embedding_length": 128},
        {"feed_forward_length": 1 << 30},
        {"feed_forward_length": "many"},
        {"attention.layer_norm_rms_epsilon": float("nan")},
        {"rope.freq_base": -1.0},
        {"expert_count": 1 << 30},
        {"rope.scaling.type": "unheard of"},
        {"rope.scaling.type": "yarn"},
        {"rope.scaling.type": "linear", "rope.scaling.factor": -1.0},
        {"rope.scaling.type": "linear", "rope.scaling.factor": 3e38},
        {"rope.dimension_count": 7},
        {"attention.layer_norm_rms_epsilon": -1.0},
        {"tokenizer.chat_template": 5},
        {"tokenizer.ggml.eos_token_id": True},
        {"tokenizer.ggml.tokens": [*TOKENS, "more", "than", "rows"],
         "tokenizer.ggml.token_type": None},
        {"tokenizer.ggml.tokens": [*TOKENS[:-1], "the"], "tokenizer.ggml.token_type": None},
    ],
    ids=lambda changes: str(changes)[:60],
)  # fmt: skip
def test_metadata_that_makes_no_sense(tmp_path: Path, changes: dict[str, Any]) -> None:
    refusal(tiny_gguf(tmp_path / "odd.gguf", matrix_type="F32", **changes))


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("mixtral", "expert_used_count", 0),
        ("mixtral", "expert_used_count", 5),
        ("qwen2moe", "expert_used_count", 5),
        ("qwen3moe", "expert_used_count", 0),
        ("gemma2", "attn_logit_softcapping", 0.0),
        ("gemma2", "final_logit_softcapping", -1.0),
        ("gemma2", "attention.sliding_window", 0),
        ("gemma3", "attention.sliding_window", 0),
        ("gemma3", "attention.sliding_window_pattern", 0),
        ("gemma3", "attention.sliding_window_pattern", 8),
        ("granite", "logit_scale", 0.0),
        ("granite", "residual_scale", -1.0),
        ("command-r", "logit_scale", 0.0),
    ],
)
def test_numbers_that_compute_nothing_are_named(
    tmp_path: Path, family: str, key: str, value: float
) -> None:
    """mlx-lm builds a model of them, which fails or says the same to everything."""
    file = tiny_gguf(tmp_path / "odd.gguf", family, "F32", **{key: value})
    assert f".{key}' is {value} where" in refusal(file)


def test_heads_of_an_odd_width_are_named(tmp_path: Path) -> None:
    """Their numbers would be turned in pairs."""
    kind = replace(
        KINDS["llama"],
        config={**KINDS["llama"].config, "head_dim": 15},
        keys={"attention.key_length": 15, "rope.dimension_count": 15},
        permuted=False,
    )
    stored = stored_tensors(kind, make_model(kind), "F32")
    assert "dimension_count' is 15" in refusal(write_gguf(tmp_path / "odd.gguf", kind, stored))


def test_a_tensor_of_the_right_size_in_another_shape_is_named(tmp_path: Path) -> None:
    kind = KINDS["llama"]
    stored = stored_tensors(kind, make_model(kind), "F32")
    name = "model.layers.1.mlp.up_proj.weight"
    turned = {**stored, name: quantised(stored[name].name, stored[name].data.T.copy(), "F32")}
    assert "(64, 96)" in refusal(write_gguf(tmp_path / "turned.gguf", kind, turned))
    deep = {**stored, name: quantised(stored[name].name, stored[name].data[None], "F32")}
    write_model(read_gguf(write_gguf(tmp_path / "deep.gguf", kind, deep)), tmp_path, silent)
    weights = mx.load(str(tmp_path / "model-00001.safetensors"))
    assert weights[name].shape == (96, 64)


def test_families_that_are_not_known_are_named(tmp_path: Path) -> None:
    file = tiny_gguf(tmp_path / "t.gguf", general__architecture=None)
    data = file.read_bytes().replace(b"llama", b"bloom")
    file.write_bytes(data)
    assert "'bloom'" in refusal(file)


def test_missing_additional_and_misshapen_tensors(tmp_path: Path) -> None:
    kind = KINDS["llama"]
    stored = stored_tensors(kind, make_model(kind), "F32")
    name = "model.layers.1.mlp.up_proj.weight"
    less = {k: v for k, v in stored.items() if k != name}
    assert "blk.1.ffn_up.weight" in refusal(write_gguf(tmp_path / "less.gguf", kind, less))
    more = {**stored, "x": quantised("blk.0.wonder.weight", np.zeros((4, 4), np.float32), "F32")}
    assert "blk.0.wonder.weight" in refusal(write_gguf(tmp_path / "more.gguf", kind, more))
    other = {**stored, name: quantised("blk.1.ffn_up.weight", np.zeros((8, 64), np.float32), "F32")}
    assert "(8, 64)" in refusal(write_gguf(tmp_path / "other.gguf", kind, other))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("matrix", ["F32", "F16", "Q8_0"])
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, value: float, matrix: str) -> None:
    kind = KINDS["llama"]
    stored = stored_tensors(kind, make_model(kind), matrix)
    name = "model.layers.1.mlp.up_proj.weight"
    data = stored[name].data.copy()
    if matrix == "Q8_0":
        data[3, :2] = np.array([value], np.float16).view(np.uint8)  # a block's scale
    else:
        data[3, 5] = value
    stored[name] = stored[name].__class__(stored[name].name, data, stored[name].type)
    text = refusal(write_gguf(tmp_path / "nan.gguf", kind, stored))
    assert "blk.1.ffn_up.weight" in text
    assert "NaN or infinite" in text


def test_weights_that_leave_their_type(tmp_path: Path) -> None:
    kind = KINDS["llama"]
    stored = stored_tensors(kind, make_model(kind), "Q8_0")
    name = "model.norm.weight"
    stored[name] = quantised(stored[name].name, np.full(64, 1e6, np.float32), "F32")
    file = write_gguf(tmp_path / "large.gguf", kind, stored)
    assert "output_norm.weight" in refusal(file)


def test_pipes_and_directories_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(RedrafterError, match=r"pipe\.gguf"):
        read_gguf(tmp_path / "pipe.gguf")
    (tmp_path / "dir.gguf").mkdir()
    with pytest.raises(RedrafterError, match=r"dir\.gguf"):
        locate(tmp_path / "dir.gguf")


@pytest.mark.parametrize("kind", ["I8", "I32", "Q8_1"])
def test_types_that_are_no_weights_are_named(tmp_path: Path, kind: str) -> None:
    family = KINDS["llama"]
    stored = stored_tensors(family, make_model(family), "F32")
    name = "model.layers.1.mlp.up_proj.weight"
    number = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[number]
    form = {"I8": np.int8, "I32": np.int32}.get(kind, np.uint8)
    data = np.ones((96, 64 // block * size if form is np.uint8 else 64), form)
    stored[name] = stored[name].__class__("blk.1.ffn_up.weight", data, number)
    text = refusal(write_gguf(tmp_path / "odd.gguf", family, stored))
    assert "blk.1.ffn_up.weight" in text
    assert kind in text


@pytest.mark.parametrize("change", ["shorter", "other"])
def test_files_that_change_while_they_are_read_are_named(tmp_path: Path, change: str) -> None:
    file = tiny_gguf(tmp_path / "t.gguf", matrix_type="F32")

    def progress(stage: str, done: int, total: int) -> None:
        if change == "shorter":
            os.truncate(file, 4096)
        else:
            os.utime(file, ns=(1, 1))

    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(RedrafterError, match=r"t\.gguf' was changed while it was read"):
        write_model(read_gguf(file), out, progress)


def test_types_that_the_package_does_not_know_are_no_damage(tmp_path: Path) -> None:
    """As those of files older or newer than it: downloading them again would not help."""
    file = tiny_gguf(tmp_path / "tiny.Q4_0_4_4.gguf")
    name = b"blk.1.ffn_up.weight"
    data = file.read_bytes()
    at = data.index(name) + len(name) + 4 + 2 * 8  # behind the dimensions
    file.write_bytes(data[:at] + (31).to_bytes(4, "little") + data[at + 4 :])
    text = refusal(file)
    assert "blk.1.ffn_up.weight" in text
    assert "type 31, which the installed gguf package does not know" in text
    assert "damaged" not in text
    file.write_bytes(data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :])
    assert "damaged" in refusal(file)


@pytest.mark.parametrize("name", ["m-00001-of-00000.gguf", "m-00009-of-00002.gguf"])
def test_numbers_of_shards_that_make_no_sense_are_part_of_a_name(tmp_path: Path, name: str) -> None:
    assert read_gguf(tiny_gguf(tmp_path / name)).path.name == name


def test_the_command_line_tells_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evil.gguf").write_bytes(HOSTILE["endless strings"])
    flags = ["--hf-path", str(tmp_path / "evil.gguf"), "--mlx-path", str(tmp_path / "out")]
    assert main(flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "evil.gguf" in error
    assert not (tmp_path / "out").exists()
