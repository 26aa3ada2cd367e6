"""What an installation that is not editable brings along."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_an_installation_has_the_pocket_and_no_modules_of_common_names(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    built = tmp_path / "lib"
    # Built in place but for its outputs; the package's own metadata is not written.
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(built)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    assert sorted(p.name for p in built.iterdir()) == ["mlx_redrafter"]
    package = built / "mlx_redrafter"
    for file in (
        "py.typed",
        "models/pocket/config.json",
        "models/pocket/drafter/model.safetensors",
    ):
        assert (package / file).is_file(), file
    for source in (ROOT / "mlx_redrafter").rglob("*"):
        inside = source.relative_to(ROOT / "mlx_redrafter")
        if source.is_file() and "__pycache__" not in source.parts:
            assert (package / inside).is_file(), f"{inside} is not installed"
    found = subprocess.run(
        [sys.executable, "-m", "mlx_redrafter", "chat", "--help"],
        cwd=tmp_path, env={"PYTHONPATH": str(built)}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert "python -m mlx_redrafter chat" in found.stdout
    where = "from mlx_redrafter.system.own_models import pocket_path; print(pocket_path())"
    pocket = subprocess.run(
        [sys.executable, "-c", where],
        cwd=tmp_path, env={"PYTHONPATH": str(built)}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert Path(pocket.stdout.strip()) == package / "models" / "pocket"


def test_every_console_script_leads_to_a_main() -> None:
    import importlib

    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    for name, place in scripts.items():
        module, function = place.split(":")
        assert callable(getattr(importlib.import_module(module), function)), name
        assert name.startswith("mlx_redrafter.")
