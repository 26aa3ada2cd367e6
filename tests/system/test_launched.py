"""Which rank a launcher gave this process."""

from __future__ import annotations

import pytest

from mlx_redrafter.system.launched import launched_rank


@pytest.mark.parametrize(
    ("variables", "rank"),
    [
        ({}, 0),
        ({"MLX_RANK": "3"}, 3),
        ({"OMPI_COMM_WORLD_RANK": "2"}, 2),
        ({"PMI_RANK": "1"}, 1),
        ({"MLX_RANK": ""}, 0),
        ({"MLX_RANK": "first"}, 0),
        ({"MLX_RANK": "0", "PMI_RANK": "1"}, 0),
    ],
)
def test_a_launchers_rank(
    variables: dict[str, str], rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launched_rank() == rank
