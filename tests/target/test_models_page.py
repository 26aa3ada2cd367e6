"""docs/models.md says what is so."""

from __future__ import annotations

import mlx_lm
import models_page
import pytest


def test_the_page_is_not_stale(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--write-pages"):
        models_page.PAGE.write_text(models_page.render(), "utf-8")
    page = models_page.PAGE.read_text("utf-8")
    if f"## mlx-lm {mlx_lm.__version__}\n" not in page:
        pytest.skip("another mlx-lm is installed than the page was written for")
    assert page == models_page.render(), "run this test with --write-pages"
    assert sum("| tree |" in line for line in page.splitlines()) >= 95
    assert not any("| chain |" in line for line in page.splitlines())
