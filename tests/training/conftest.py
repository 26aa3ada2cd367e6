"""A tiny target and conversations to train a drafter from."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundles import make_bundle
from training_files import chats, write


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target without a drafter; a test that writes into it takes a copy."""
    return make_bundle(tmp_path_factory.mktemp("target") / "tiny", drafter=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six conversations, JSON Lines."""
    return write(tmp_path_factory.mktemp("data") / "data.jsonl", chats())
