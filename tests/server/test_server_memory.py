"""Requests leave nothing behind, however they end, and kept prefixes stay within their bound."""

from __future__ import annotations

import gc
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import mlx.core as mx
import pytest
from bundles import make_bundle
from live_server import Live, eventually, serve

from mlx_redrafter.server.loading import ModelSpec, load_models
from mlx_redrafter.server.metrics import Metrics
from mlx_redrafter.server.settings import ServerSettings
from mlx_redrafter.server.work.answering import Answering
from mlx_redrafter.server.work.host import Work
from mlx_redrafter.server.work.service import Ticket

KEPT = 100_000
PER_REQUEST = (Ticket, Work, Answering)
KINDS = ("finished", "cancelled", "refused", "failed", "stream")


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    bundle = make_bundle(tmp_path / "tiny", context=2048)
    settings = ServerSettings(cache_memory=KEPT, max_queue=4, sampling={"temperature": 0.0})
    metrics = Metrics()
    real = Answering.token

    def token(self: Answering, new: Any) -> Any:
        if "fail" in self.job.stops:
            raise ValueError("a fault of this answer's")
        return real(self, new)

    monkeypatch.setattr(Answering, "token", token)
    # pytest keeps what is logged, and with a traceback all that it names.
    monkeypatch.setattr(logging.getLogger("mlx_redrafter.server"), "disabled", True)
    thread, served = load_models([ModelSpec(str(bundle), plan=False)], settings, metrics)
    with serve(thread, served, settings, metrics) as live:
        yield live


def ask(live: Live, kind: str, number: int) -> int:
    """One request that ends as its kind says; returns the status."""
    words = 4000 if kind == "refused" else 30
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": f"{number} " + "dog " * words}],
        "max_tokens": 1500 if kind == "cancelled" else 6,
        "stream": kind in ("cancelled", "stream"),
        "logit_bias": {"0": -100},
        "stop": ["fail"] if kind == "failed" else [],
    }
    url = f"{live.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=60) as response:
        if kind == "cancelled" and response.status_code == 200:
            next(response.iter_lines())
        else:
            response.read()
    return response.status_code


def left() -> int:
    """Objects of requests that are still held."""
    gc.collect()
    return sum(type(found) in PER_REQUEST for found in gc.get_objects())


def idle(live: Live) -> bool:
    (model,) = httpx.get(f"{live.url}/status").json()["models"]
    return model["running"] == model["waiting"] == 0


def test_requests_leave_nothing_behind_however_they_end(live: Live) -> None:
    seen: Counter[tuple[str, int]] = Counter()

    def rounds(first: int, count: int) -> None:
        def run(kind: str) -> None:
            for number in range(first, first + count):
                seen[kind, ask(live, kind, number)] += 1

        threads = [threading.Thread(target=run, args=(kind,)) for kind in KINDS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert eventually(lambda: idle(live))

    rounds(0, 3)
    before = mx.get_active_memory()
    rounds(3, 4)
    assert mx.get_active_memory() <= before + 2 * KEPT
    assert eventually(lambda: left() == 0)
    wanted = {"finished": 200, "cancelled": 200, "refused": 400, "failed": 500, "stream": 200}
    assert seen == {(kind, wanted[kind]): 7 for kind in KINDS}
    (model,) = httpx.get(f"{live.url}/status").json()["models"]
    assert 0 < model["cache_bytes"] <= KEPT
