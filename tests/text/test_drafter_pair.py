"""Drafters whose two files were not written together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import bundles
import mlx.core as mx
import pytest

import models
from mlx_redrafter.conversion import convert
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.text import drafter_files
from mlx_redrafter.text.drafter_files import load_drafter, save_drafter

HASHES = ({"name": "a", "tokenizer_hash": "0"}, {"name": "b", "tokenizer_hash": "1"})


def cut_off(directory: Path, monkeypatch: pytest.MonkeyPatch, **shape: Any) -> None:
    """Replace a drafter, as far as the process gets that is killed after the weights."""

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    drafter = models.build_drafter()
    drafter.config = replace(drafter.config, **shape)
    with monkeypatch.context() as patch:
        patch.setattr(drafter_files, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            save_drafter(directory, drafter)


@pytest.mark.parametrize(
    ("shape", "words"),
    [({"lookback": 3}, "lookback"), ({"target": HASHES[1]}, "tokenizer_hash")],
)
def test_new_weights_under_an_old_configuration_are_refused(
    shape: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = models.build_drafter()
    old.config = replace(old.config, target=HASHES[0])
    save_drafter(tmp_path, old)
    cut_off(tmp_path, monkeypatch, **{"target": HASHES[0], **shape})
    with pytest.raises(RedrafterError, match=rf"another config\.json .*\(not the same: {words}\)"):
        load_drafter(tmp_path)
    new = models.build_drafter()
    new.config = replace(new.config, **shape)
    save_drafter(tmp_path, new)  # the run is gone on with
    assert load_drafter(tmp_path).config == new.config


def test_a_conversion_refuses_them_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = bundles.make_bundle(tmp_path / "tiny")
    head = load_drafter(bundle / "drafter")
    head.config = replace(head.config, lookback=3)
    text = (bundle / "drafter" / "config.json").read_text("utf-8")
    save_drafter(bundle / "drafter", head)
    (bundle / "drafter" / "config.json").write_text(text, "utf-8")
    with pytest.raises(RedrafterError, match="not the same: lookback"):
        convert(hf_path=bundle, mlx_path=tmp_path / "out", drafter=bundle / "drafter")


def test_what_says_nothing_of_its_configuration_is_loaded(tmp_path: Path) -> None:
    """As Apple's drafters, and those that were written before."""
    save_drafter(tmp_path, models.build_drafter())
    path = tmp_path / "model.safetensors"
    loaded: Any = mx.load(str(path))
    for metadata in ({"format": "mlx"}, {}):
        mx.save_safetensors(str(path), loaded, metadata)
        load_drafter(tmp_path)


def test_a_renamed_target_and_further_entries_are_no_difference(tmp_path: Path) -> None:
    drafter = models.build_drafter()
    drafter.config = replace(drafter.config, target=HASHES[0])
    save_drafter(tmp_path, drafter)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text("utf-8"))
    for target in ({"name": "renamed", "tokenizer_hash": "0"}, {"name": "renamed"}, None):
        path.write_text(json.dumps({**values, "target": target, "license": "mine"}), "utf-8")
        load_drafter(tmp_path)


@pytest.mark.parametrize("note", ["{", "3", "{}"])
def test_a_damaged_note_is_told(note: str, tmp_path: Path) -> None:
    save_drafter(tmp_path, models.build_drafter())
    path = tmp_path / "model.safetensors"
    loaded: Any = mx.load(str(path))
    mx.save_safetensors(str(path), loaded, {"drafter_config": note})
    with pytest.raises(RedrafterError, match="is damaged: it does not say"):
        load_drafter(tmp_path)
