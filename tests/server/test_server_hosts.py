"""By which names a server may be called that listens at more than one address."""

from __future__ import annotations

import httpx
import pytest
from live_server import Live, serve_scripted
from mlx_lm.tokenizer_utils import TokenizerWrapper
from scripted_answers import script

from mlx_redrafter.server.settings import ServerSettings
from mlx_redrafter.server.web.security import is_loopback, known_hosts

CHAT = "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": "please say"}]}


def test_where_it_listens_everywhere_its_own_names_are_known() -> None:
    names = known_hosts("0.0.0.0", ["box.example"])
    assert {"localhost", "127.0.0.1", "[::1]", "box.example"} <= set(names)
    assert "0.0.0.0" not in names
    assert known_hosts("127.0.0.1", ["*"]) == ["*"]
    assert is_loopback("127.0.0.2")
    assert not is_loopback("0.0.0.0")


@pytest.mark.parametrize("everywhere", ["0.0.0.0", "::"])
def test_where_it_listens_everywhere_any_address_is_its_own(
    tokenizer: TokenizerWrapper, everywhere: str
) -> None:
    """Of which a machine has many, in containers none that it could know."""
    settings = ServerSettings(host=everywhere)
    with serve_scripted(tokenizer, script(tokenizer), settings) as live:
        for host in (
            "192.168.1.7:8080",
            "10.0.0.1",
            "[fd00::7]:80",
            "[fe80::1]",
            "[::ffff:1.2.3.4]",
        ):
            assert httpx.get(live.url + "/health", headers={"Host": host}).status_code == 200
        for host in (
            "evil.example",
            "1.2.3.4.evil.example",
            "0.0.0.0",
            "[::]:80",
            "1.2.3",
            "1.2.3.4:x",
            "[1.2.3.4",
            "0x7f000001",
            "2130706433",
            "999.1.1.1",
            "[fe80::1]x",
            "1.2.3.4@b",
        ):
            assert httpx.get(live.url + "/health", headers={"Host": host}).status_code == 400, host
        mine = {"Host": "192.168.1.7:8080", "Origin": "http://192.168.1.7:8080"}
        assert httpx.post(live.url + CHAT, json=ASK, headers=mine).status_code == 200
        foreign = mine | {"Origin": "https://evil.example"}
        assert httpx.post(live.url + CHAT, json=ASK, headers=foreign).status_code == 403


def test_where_it_listens_at_one_address_others_are_turned_away(live: Live) -> None:
    refused = httpx.get(live.url + "/health", headers={"Host": "192.168.1.7:8080"})
    assert refused.status_code == 400
