"""A server before a scripted engine; files that need another one have their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from live_server import Live, ScriptedSequences, serve_scripted, tool_tokenizer
from mlx_lm.tokenizer_utils import TokenizerWrapper
from scripted_answers import script


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TokenizerWrapper:
    """One with a template for tools."""
    return tool_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def engine(tokenizer: TokenizerWrapper) -> ScriptedSequences:
    """Answers by the question's last word."""
    return script(tokenizer)


@pytest.fixture(scope="module")
def live(tokenizer: TokenizerWrapper, engine: ScriptedSequences) -> Iterator[Live]:
    """A server before it."""
    with serve_scripted(tokenizer, engine) as live:
        yield live
