"""docs/models.md says what is so."""

from __future__ import annotations

import sys
from pathlib import Path

import mlx_lm
import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_the_page_is_not_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "experiments"), *sys.path])
    import models_table

    page = models_table.PAGE.read_text("utf-8")
    if f"## mlx-lm {mlx_lm.__version__}\n" not in page:
        pytest.skip("another mlx-lm is installed than the page was written for")
    written = models_table.render()
    assert page == written, "run python experiments/models_table.py --write"
    assert sum("| tree |" in line for line in page.splitlines()) >= 95
    assert not any("| chain |" in line for line in page.splitlines())
