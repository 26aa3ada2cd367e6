"""The options of a conversion: those that mlx-lm has, and those that would have no effect."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conversion_models import write_target
from gguf_models import tiny_gguf
from mlx_lm.convert import MODEL_CONVERSION_DTYPES, QUANT_RECIPES

from mlx_redrafter.conversion import convert
from mlx_redrafter.conversion.options import DTYPES, RECIPES, Options
from mlx_redrafter.errors import RedrafterError

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_target(tmp_path_factory.mktemp("checkpoints") / "tiny-llama")


def test_choices_are_those_of_mlx_lm() -> None:
    assert [*RECIPES] == QUANT_RECIPES
    assert [*DTYPES] == MODEL_CONVERSION_DTYPES


def test_the_function_has_the_options_that_the_flags_have() -> None:
    parameters = dict(inspect.signature(convert).parameters)
    del parameters["progress"]
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    assert defaults == {one.name: one.default for one in fields(Options)}


def test_a_group_size_serves_a_drafter_alone() -> None:
    Options(hf_path="t", q_group_size=32, drafter_q_bits=4).validate()
    Options(hf_path="t", q_group_size=32, drafter_rnn_q_bits=8).validate()
    Options(hf_path="t", q_group_size=32, quantize=True).validate()


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"hf_path": "t", "q_group_size": 32}, "--q-group-size shapes"),
        ({"hf_path": "t", "q_group_size": 32, "drafter_q_bits": "none"}, "--q-group-size shapes"),
        ({"drafter": "d", "mlx_path": "b", "revision": "main"}, "--revision is one of --hf-path"),
    ],
)
def test_options_that_shape_nothing(options: dict[str, Any], wrong: str) -> None:
    with pytest.raises(RedrafterError, match=wrong):
        Options(**options).validate()


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"hf_path": 5}, "hf_path has to be a path"),
        ({"drafter": [1]}, "drafter has to be a path"),
        ({"mlx_path": b"out"}, "mlx_path has to be a path"),
        ({"overwrite": "no"}, "overwrite has to be True or False"),
        ({"trust_remote_code": "no"}, "trust_remote_code has to be True or False"),
        ({"quantize": 4}, "quantize has to be True or False"),
        ({"q_mode": ["affine"]}, "q_mode has to be text"),
        ({"dtype": 16}, "dtype has to be text"),
        ({"revision": 5}, "revision has to be text"),
        ({"progress": 5}, "progress has to be a function"),
        ({"q_bits": np.array([4, 8])}, "q_bits has to be a whole number"),
        ({"q_group_size": 64.0}, "q_group_size has to be a whole number"),
        ({"drafter_q_bits": np.array([4, 8])}, "drafter_q_bits has to be 4, 5, 6, 8 or"),
        ({"drafter_rnn_q_bits": [4]}, "drafter_rnn_q_bits has to be 4, 5, 6, 8 or"),
    ],
)
def test_options_of_a_wrong_kind(option: dict[str, Any], words: str) -> None:
    with pytest.raises(RedrafterError, match=words):
        convert(**{"hf_path": "t", **option})


def test_another_file_than_the_one_that_is_named(tmp_path: Path, target: Path) -> None:
    file = tiny_gguf(tmp_path / "tiny.Q8_0.gguf", matrix_type="Q8_0")
    out = tmp_path / "out"
    for place, wrong in (
        ("smollm2", "'smollm2' is the file SmolLM2-135M-Instruct.Q4_1.gguf, not x.gguf"),
        (str(file), "is the file tiny.Q8_0.gguf, not x.gguf"),
        (str(target), "holds no GGUF file: leave --gguf-file out"),
    ):
        with pytest.raises(RedrafterError, match=wrong):
            convert(hf_path=place, gguf_file="x.gguf", mlx_path=out)
    convert(hf_path=file, gguf_file="tiny.Q8_0.gguf", mlx_path=out)


def test_a_revision_of_what_lies_here(tmp_path: Path, target: Path) -> None:
    report = convert(hf_path=target, mlx_path=tmp_path / "out", revision="main")
    assert report.notes == (f"'{target}' has no other revisions, so --revision was not used.",)
    assert convert(hf_path=target, mlx_path=tmp_path / "other").notes == ()
