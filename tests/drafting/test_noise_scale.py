"""How far a draft follows the noise."""

import mlx.core as mx
import pytest

from mlx_redrafter.drafting.noise_scale import HALF, PRIOR_SHARE, NoiseScale
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.drafting.source import DraftInput
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.noise import noise_rows
from mlx_redrafter.sampling import SamplingConfig
from mlx_redrafter.tree import DraftTree
from models import build


def test_noise_is_dropped_where_it_decides_nothing() -> None:
    noise_scale = NoiseScale()
    before = noise_scale.scale
    noise_scale.observe([False] * 400)
    assert 0 <= noise_scale.scale < 0.05 < before


def test_noise_is_followed_where_it_decides() -> None:
    noise_scale = NoiseScale()
    noise_scale.observe([True, False] * 200)
    assert noise_scale.scale == pytest.approx(0.5**2 / (0.5**2 + HALF**2), abs=0.02)


def test_it_starts_in_between_and_forgets() -> None:
    noise_scale = NoiseScale()
    assert noise_scale.scale == pytest.approx(PRIOR_SHARE**2 / (PRIOR_SHARE**2 + HALF**2))
    noise_scale.observe([True] * 500)
    noise_scale.observe([False] * 500)
    assert noise_scale.scale < 0.05


class _Recorder:
    """Drafts nothing of use; notes how much of the noise it was given."""

    max_depth = 1
    seconds = 0.0

    def __init__(self, seed: int):
        self.seed = seed
        self.scales: list[float] = []

    def __call__(self, state: DraftInput) -> DraftTree:
        assert state.noise is not None
        position = len(self.scales)
        rows = noise_rows(self.seed, 0, 64, state.noise.shape[1])
        ratios = mx.median(state.noise[0][None] / rows, axis=1)
        spread = mx.abs(state.noise[0][None] / rows - ratios[:, None]).max(axis=1)
        self.scales.append(float(ratios[mx.argmin(spread)].item()))
        assert spread.min().item() < 1e-2, f"draft {position} got other noise than its position's"
        return DraftTree.from_parents([int(state.root.item()), 0], [-1, 0])


@pytest.mark.parametrize(("scale", "sure"), [(40.0, True), (0.01, False)])
def test_the_loop_scales_the_noise_of_drafts(scale: float, sure: bool) -> None:
    """A sure target (large logits) has its drafts ignore the noise, a flat one follow it."""
    target = build("llama")
    head = target.model.embed_tokens.weight if target.args.tie_word_embeddings else None
    if head is None:
        target.lm_head.weight = target.lm_head.weight * scale
    else:
        target.model.norm.weight = target.model.norm.weight * scale
    recorder = _Recorder(seed=4)
    config = DecodingConfig(
        max_tokens=50, sampling=SamplingConfig(temperature=1.0, seed=4), beam=BeamShape(1, 1)
    )
    list(decode(SpeculativeModel(target, recorder), [1, 2, 3], config))
    first, last = recorder.scales[0], recorder.scales[-1]
    assert (last < 0.6 * first) if sure else (last > first)
