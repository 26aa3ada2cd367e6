"""What was given in the wrong place, or does not fit, is blamed and not the files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from bundles import make_bundle

from mlx_redrafter import convert, load
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.text.drafter_files import load_drafter, save_drafter, tokenizer_hash


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose drafter knows which vocabulary it was made for."""
    directory = make_bundle(tmp_path_factory.mktemp("bundle") / "tiny")
    _, tokenizer = load(directory, plan=False)
    drafter = load_drafter(directory / "drafter")
    target = {"name": "tiny", "tokenizer_hash": tokenizer_hash(tokenizer)}
    object.__setattr__(drafter.config, "target", target)
    save_drafter(directory / "drafter", drafter)
    return directory


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            {"tokenizer_config": {"eos_token": "zzz"}},
            r"^With eos_token from tokenizer_config the tokenizer has another vocabulary than the "
            r"one the drafter was made for: correct or leave out --tokenizer-config",
        ),
        (
            {"tokenizer_config": {"eos_token": 5}},
            r"^With eos_token from tokenizer_config: the tokenizer in .*: correct or leave out "
            r"--tokenizer-config \(tokenizer_config\)\.$",
        ),
        (
            {"model_config": {"num_hidden_layers": 1}},
            r"^With num_hidden_layers from model_config: .*: correct or leave out --model-config",
        ),
        (
            {"model_config": {"hidden_size": "a"}},
            r"^With hidden_size from model_config: .*: correct or leave out --model-config",
        ),
        (
            {"model_config": {"eos_token_id": "a"}},
            r"^With eos_token_id from model_config: the tokenizer .*: correct or leave out "
            r"--model-config",
        ),
        (
            {"model_config": {"rope_theta": "a"}},
            r"^With rope_theta from model_config: .*: correct or leave out --model-config",
        ),
    ],
)
def test_overrides_that_do_not_fit_are_blamed(
    overrides: dict[str, Any], sentence: str, bundle: Path
) -> None:
    with pytest.raises(RedrafterError, match=sentence) as caught:
        load(bundle, plan=False, **overrides)
    assert "again" not in str(caught.value)


def test_overrides_that_leave_the_vocabulary_as_it_is_are_not_blamed(
    bundle: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(bundle, other)
    drafter = load_drafter(other / "drafter")
    object.__setattr__(drafter.config, "target", {"name": "other", "tokenizer_hash": "0"})
    save_drafter(other / "drafter", drafter)
    with pytest.raises(RedrafterError, match="made for other, whose tokenizer has another"):
        load(other, plan=False, tokenizer_config={"padding_side": "left"})


def test_a_drafter_in_a_models_place_is_told_its_own(bundle: Path, tmp_path: Path) -> None:
    drafter = bundle / "drafter"
    with pytest.raises(RedrafterError, match=r"drafter is a drafter: pass it as --drafter"):
        load(drafter, plan=False)
    with pytest.raises(RedrafterError, match=r"is a drafter, not a target: pass it as --drafter"):
        convert(drafter, mlx_path=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(RedrafterError, match=r"is a drafter, not a target: .*as --mlx-path"):
        convert(drafter=drafter, mlx_path=drafter)
    assert not (drafter / "drafter").exists()
