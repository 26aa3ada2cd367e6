"""Ranks find each other, whoever else connects to their ports."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from rank_group import free_ports

from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.system import rendezvous
from mlx_redrafter.system.ranks import join
from mlx_redrafter.system.rendezvous import Address, meet_at

SECONDS = 60.0


@pytest.fixture
def hosts() -> list[Address]:
    return [("127.0.0.1", port) for port in free_ports(2)]


@pytest.fixture
def links() -> Iterator[ExitStack]:
    """Closes connections."""
    with ExitStack() as stack:
        yield stack


def connect(address: Address, said: bytes, links: ExitStack) -> socket.socket:
    """A connection to a rank, as soon as it listens."""
    end = time.monotonic() + SECONDS
    while True:
        try:
            link = links.enter_context(socket.create_connection(address))
        except ConnectionRefusedError:
            assert time.monotonic() < end
            time.sleep(0.01)
        else:
            link.sendall(said)
            return link


def test_strangers_take_nobodys_place(
    hosts: list[Address], links: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "_HELLO_SECONDS", 0.3)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(meet_at, 0, hosts, SECONDS)
        # They come before the other rank: a health check, another program's rank, one of a run of
        # another size, one that is silent, one that is slow, and one that is gone at once.
        for said in (b"GET / HTTP/1.0\r\n\r\n", b'{"all_here": true}\n', b"", b"mlx"):
            connect(hosts[0], said, links)
        connect(hosts[0], rendezvous._hello(1, 3), links)
        connect(hosts[0], rendezvous._hello(0, 2), links)
        connect(hosts[0], b"", links).close()
        second = threads.submit(meet_at, 1, hosts, SECONDS)
        met = [first.result(), second.result()]
    assert [[peer.rank for peer in peers] for peers in met] == [[1, 1], [0, 0]]
    met[0][0].send(known=[])
    assert met[1][1].receive() == {"known": []}
    for peer in met[0] + met[1]:
        links.enter_context(peer.link)


def test_strangers_do_not_keep_it_from_ending(hosts: list[Address], links: ExitStack) -> None:
    links.enter_context(socket.create_server(hosts[1]))
    stranger = threading.Thread(target=connect, args=(hosts[0], b"", links))
    stranger.start()
    with pytest.raises(RedrafterError, match="Rank 1 has not come"):
        meet_at(0, hosts, 0.5)
    stranger.join()


@pytest.mark.parametrize("said", [b"GET / HTTP/1.0\r\n", b"\xff\n", b"null\n", b"{}\n", b"3\n"])
def test_a_rank_that_says_something_else_is_missed(
    said: bytes, hosts: list[Address], links: ExitStack
) -> None:
    links.enter_context(socket.create_server(hosts[1]))
    said = rendezvous._hello(1, 2) + said
    other = threading.Thread(target=connect, args=(hosts[0], said, links))
    other.start()
    with pytest.raises(RedrafterError, match="Rank 1 has ended: start all of them again"):
        meet_at(0, hosts, SECONDS)
    other.join()


@pytest.mark.parametrize("left", ["\n", ""])
def test_one_process_under_mlx_launch_is_alone(
    left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mlx.launch leaves it an empty host file, which mlx itself cannot read."""
    (tmp_path / "hosts").write_text(left)
    monkeypatch.setenv("MLX_HOSTFILE", str(tmp_path / "hosts"))
    monkeypatch.setenv("MLX_RANK", "0")
    assert rendezvous.meet() is None
    assert join() is None
