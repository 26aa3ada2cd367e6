"""A server before a scripted engine; files have parts of their own, or another server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from browser_page import chromium
from live_server import Live, ScriptedSequences, openai_client, serve_scripted, tool_tokenizer
from mlx_lm.tokenizer_utils import TokenizerWrapper
from scripted_answers import script

from mlx_redrafter.server.settings import ServerSettings


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TokenizerWrapper:
    """One with a template for tools."""
    return tool_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def engine(tokenizer: TokenizerWrapper) -> ScriptedSequences:
    """Answers by the question's last word."""
    return script(tokenizer)


@pytest.fixture(scope="module")
def server_settings() -> ServerSettings:
    """The default ones."""
    return ServerSettings()


@pytest.fixture(scope="module")
def context() -> int:
    """Tokens of prompt and answer at most."""
    return 4096


@pytest.fixture(scope="module")
def live(
    tokenizer: TokenizerWrapper,
    engine: ScriptedSequences,
    server_settings: ServerSettings,
    context: int,
) -> Iterator[Live]:
    """A server before it."""
    with serve_scripted(tokenizer, engine, server_settings, context=context) as live:
        yield live


@pytest.fixture(scope="module")
def client(live: Live) -> Any:
    """OpenAI's package before the server."""
    return openai_client(live)


@pytest.fixture(scope="module")
def claude(live: Live) -> Any:
    """Anthropic's package before it."""
    anthropic = pytest.importorskip("anthropic")
    return anthropic.Anthropic(base_url=live.url, api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium for the page."""
    with chromium() as browser:
        yield browser
