"""How long a text a model was made for, and that calibration stays within it."""

from __future__ import annotations

import architectures
import pytest

from mlx_redrafter.costs import SIZES, contexts_of
from mlx_redrafter.limits import context_limit
from mlx_redrafter.model import SpeculativeModel


@pytest.mark.parametrize(
    ("name", "key"), [("llama", "max_position_embeddings"), ("gpt2", "n_positions")]
)
def test_the_limit_has_several_names(name: str, key: str) -> None:
    model = architectures.build(name)
    setattr(model.args, key, 200)
    assert context_limit(model) == 200
    (context,) = contexts_of(SpeculativeModel(model))
    assert context + max(SIZES) <= 200
