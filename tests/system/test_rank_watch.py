"""Who keeps others waiting is told from who had nothing to do."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from mlx_redrafter.system.rank_watch import PULSE_SECONDS, RankWatch, leave
from mlx_redrafter.system.rendezvous import Peer

HANG_SECONDS = 4 * PULSE_SECONDS
Pair = tuple[SimpleNamespace, SimpleNamespace, Callable[[float], str | None]]


def test_what_ends_a_run_is_logged_before_the_process_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A script without handlers of its own has it on its error stream."""
    codes: list[int] = []
    monkeypatch.setattr("os._exit", codes.append)
    leave("Rank 1 has ended.")
    assert codes == [2]
    assert [one.getMessage().strip() for one in caplog.records] == ["Rank 1 has ended."]
    assert caplog.records[0].levelname == "CRITICAL"


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two ranks that watch each other, and what rank 0 says within some seconds."""
    said, failed = [], threading.Event()

    def fail(sentence: str) -> None:
        said.append(sentence)
        failed.set()

    def heard(seconds: float) -> str | None:
        return said[0] if failed.wait(seconds) else None

    ranks = [SimpleNamespace(rank=rank, size=2, progress=0) for rank in range(2)]
    links = socket.socketpair()
    watches = [
        RankWatch(
            ranks[rank],  # type: ignore[arg-type]
            [Peer(1 - rank, links[rank])],
            fail if rank == 0 else lambda _: None,
            hang_seconds=HANG_SECONDS,
        )
        for rank in range(2)
    ]
    yield ranks[0], ranks[1], heard
    for watch in watches:
        watch.stop()
    for link in links:
        link.close()


def test_a_rank_that_had_nothing_to_do_for_long_does_not_hang(pair: Pair) -> None:
    first, second, heard = pair
    assert heard(2 * HANG_SECONDS) is None
    first.progress += 1  # a request comes after a quiet hour
    assert heard(2 * PULSE_SECONDS) is None
    second.progress += 1
    assert heard(2 * HANG_SECONDS) is None


def test_a_rank_that_is_waited_for_is_named(pair: Pair) -> None:
    first, _, heard = pair
    first.progress += 1
    sentence = heard(60)
    assert sentence is not None
    assert "Rank 1 has not answered for 2 seconds" in sentence


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.0\r\n",
        b"\xff\n",
        b"null\n",
        b"[" * 100_000 + b"\n",
        b"{}\n",
        b'{"known": 3}\n',
        b'{"known": [3]}\n',
        b'{"known": [[1, 2]]}\n',
        b'{"known": [[[], 0, false]]}\n',
        b'{"known": [[1, "far", false]]}\n',
    ],
)
def test_who_says_what_no_rank_says_is_missed(said: bytes) -> None:
    """A watch that ended without a word would miss nobody any more."""
    told, failed = [], threading.Event()

    def fail(sentence: str) -> None:
        told.append(sentence)
        failed.set()

    ranks = SimpleNamespace(rank=0, size=2, progress=0)
    own, other = socket.socketpair()
    with own, other:
        watch = RankWatch(ranks, [Peer(1, own)], fail)  # type: ignore[arg-type]
        other.sendall(said)
        assert failed.wait(60)
        assert told == ["Rank 1 has ended: start all of them again."]
        watch.stop()
