"""The tokenizer of tiny bundles."""

from __future__ import annotations

import bundles
import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper, load


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TokenizerWrapper:
    """Of the kind and size that :mod:`bundles` makes."""
    directory = tmp_path_factory.mktemp("tokenizer")
    bundles.make_tokenizer(directory)
    return load(directory)
