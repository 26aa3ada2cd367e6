"""The real loop against the algorithm in plain code: the same text, made by the same steps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_step import reference_text

import models
from mlx_redrafter.drafting.source import DraftInput
from mlx_redrafter.engine.decode import DecodingConfig, decode
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.engine.statistics import AcceptanceStats
from mlx_redrafter.sampling import SamplingConfig
from mlx_redrafter.tree import DraftTree

COUNT = 12
DEPTH = 3


class Grown(models.ScriptedSource):
    """Proposes trees that depend on the text alone: some of the truth, among wrong branches."""

    def __init__(self, truth: list[int], seed: int):
        super().__init__(truth, max_depth=DEPTH)
        self._truth, self._seed = truth, seed

    def tree(self, text: list[int]) -> DraftTree:
        rng = np.random.default_rng([self._seed, len(text)])
        follows = self._truth[len(text) : len(text) + int(rng.integers(0, DEPTH + 1))]
        return models.random_tree(rng, text[-1], follows, max_depth=DEPTH, extra=4)

    def plain(self, text: list[int]) -> tuple[list[int], list[int]]:
        tree = self.tree(text)
        return tree.tokens.tolist(), tree.parents.tolist()

    def __call__(self, state: DraftInput) -> DraftTree:
        return self.tree([*state.text, int(state.root.item())])


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@settings(max_examples=6, derandomize=True, deadline=None, database=None)
@given(
    seed=st.integers(0, 2**16),
    temperature=st.sampled_from([0.0, 0.8]),
    top_k=st.sampled_from([0, 9]),
)
def test_the_loop_is_the_algorithm(name: str, seed: int, temperature: float, top_k: int) -> None:
    model = models.shared(name)
    prompt = models.prompt_of(7, seed=seed)
    sampling = SamplingConfig(temperature=temperature, top_k=top_k, seed=seed)
    alone, _ = reference_text(
        model, prompt, COUNT + DEPTH, lambda text: (text[-1:], [-1]), sampling
    )
    source = Grown(prompt + alone, seed)
    # The first token comes from the prompt's own forward: nothing is drafted there.
    first = alone[:1]
    text, made = reference_text(model, prompt + first, COUNT - 1, source.plain, sampling)
    assert first + text == alone[:COUNT]
    stats = AcceptanceStats()
    decoded = decode(
        SpeculativeModel(model, source), prompt, DecodingConfig(COUNT, sampling), stats=stats
    )
    assert [one.token for one in decoded] == first + text
    assert stats.steps == len(made)
