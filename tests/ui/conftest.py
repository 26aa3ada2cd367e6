"""A bundle to chat with."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundles import make_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "tiny", context=400)


@pytest.fixture
def no_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether mlx found a BLAS depends on what was imported first, and on the machine."""
    monkeypatch.setattr("mlx_redrafter.blas_loaded", True)
