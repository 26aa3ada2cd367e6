"""Whether arrays still hold what they held."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlx_redrafter.system import snapshot as module
from mlx_redrafter.system.snapshot import Snapshot

DTYPES = [mx.float32, mx.float16, mx.bfloat16, mx.uint32, mx.int32, mx.bool_]


def _arrays(dtype: mx.Dtype) -> list[mx.array]:
    made = [mx.zeros((4, 6)).astype(dtype), mx.ones((5, 3)).astype(dtype).T]
    mx.eval(made)
    return made


@pytest.fixture(params=["addresses", "numbers"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How changes are noticed: by addresses, and on CUDA by comparing."""
    monkeypatch.setattr(module, "_on_cuda", lambda: request.param == "numbers")
    return str(request.param)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_nobody_changes_matches(way: str, dtype: mx.Dtype) -> None:
    arrays = _arrays(dtype)
    kept = Snapshot(arrays)
    assert kept.matches(arrays)
    mx.eval(arrays[0] + 1, arrays[1].T)
    assert kept.matches(arrays)
    assert not kept.matches(arrays[:1])
    assert not kept.matches([mx.array(one) for one in arrays])
    assert Snapshot([]).matches([])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("which", [0, 1])
def test_numbers_changed_in_place_do_not_match(way: str, dtype: mx.Dtype, which: int) -> None:
    arrays = _arrays(dtype)
    kept = Snapshot(arrays)
    arrays[which][1] = 1 - which
    assert not kept.matches(arrays)
    kept = Snapshot(arrays)
    for _ in range(3):  # again and again, also where nothing was looked at in between
        arrays[which][2] = 1 - which
        arrays[which][2] = which
    arrays[which][2] = 1 - which
    assert not kept.matches(arrays)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_sums_in_place_do_not_match(way: str, dtype: mx.Dtype) -> None:
    arrays = _arrays(dtype)
    kept = Snapshot(arrays)
    arrays[1] += 1
    assert not kept.matches(arrays)
