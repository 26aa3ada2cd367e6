"""A text and the ways to decode it, for tests of the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

import models
from mlx_redrafter import tree as trees
from mlx_redrafter.cache.prompt_cache import PromptCache
from mlx_redrafter.drafting.copy_memory import CopyMemory
from mlx_redrafter.drafting.shape import BeamShape
from mlx_redrafter.engine import sequence as sequences
from mlx_redrafter.engine.config import DecodingConfig
from mlx_redrafter.engine.decode import decode
from mlx_redrafter.engine.model import SpeculativeModel
from mlx_redrafter.engine.shape_planner import ObservedStep, StepPlan
from mlx_redrafter.engine.statistics import AcceptanceStats
from mlx_redrafter.sampling import SamplingConfig
from mlx_redrafter.tree import HostTree

ARCHITECTURE = "llama:sliding"
PROMPT = models.prompt_of(11)
LENGTH = 18
SAMPLED = SamplingConfig(1.0, frequency_penalty=0.5, seed=6)


def plain(
    prompt: list[int], max_tokens: int, sampling: SamplingConfig = SAMPLED, **options: Any
) -> list[int]:
    """A text of the plain loop with cold caches: what every other way has to give."""
    config = DecodingConfig(max_tokens, sampling, draft=False, **options)
    model = SpeculativeModel(models.shared(ARCHITECTURE))
    return [decoded.token for decoded in decode(model, prompt, config)]


TEXT = plain(PROMPT, LENGTH + 8)


def plain_model() -> SpeculativeModel:
    return SpeculativeModel(models.shared(ARCHITECTURE))


def drafting_model(
    prompt: list[int] = PROMPT, text: list[int] = TEXT, *, depth: int = 4, **options: Any
) -> SpeculativeModel:
    """Every step accepts ``depth`` tokens that hide among wrong branches."""
    source = models.ScriptedSource(prompt + text, full=True, max_depth=depth, **options)
    return SpeculativeModel(models.shared(ARCHITECTURE), source)


KINDS: dict[str, Callable[[], SpeculativeModel]] = {
    "plain": plain_model,
    "drafted": drafting_model,
    "beam search": lambda: SpeculativeModel(models.shared(ARCHITECTURE), models.build_drafter()),
    "memory": lambda: SpeculativeModel(models.shared(ARCHITECTURE), models.memory_drafter()),
}
KIND = pytest.mark.parametrize("kind", KINDS)


def config_of(max_tokens: int = LENGTH, **options: Any) -> DecodingConfig:
    return DecodingConfig(max_tokens, SAMPLED, beam=BeamShape(3, 3), **options)


def assert_consistent(cache: PromptCache, tokens: list[int]) -> None:
    """The caches hold exactly these tokens, in every layer."""
    assert cache.tokens == tokens
    assert [layer.offset for layer in cache.layers] == [len(tokens)] * len(cache.layers)


def assert_goes_on(cache: PromptCache, held: list[int], new: list[int]) -> None:
    """A further turn on these caches is what cold caches give, and prefills only what is new."""
    prompt = held + new
    told: list[tuple[int, int]] = []
    config = DecodingConfig(8, SAMPLED, draft=False)
    warm = decode(
        plain_model(), prompt, config, cache=cache, progress=lambda *done: told.append(done)
    )
    assert [decoded.token for decoded in warm] == plain(prompt, 8)
    assert told[0] == (len(held), len(prompt) - 1)


class ScriptedPlanner:
    """What planners of a single text have in common whose steps a test lays down."""

    plan = StepPlan()

    class costs:
        """Nothing costs anything."""

        @staticmethod
        def draft_seconds(shape: BeamShape) -> float:
            return 0.0

    def for_batch(self, sequences: int) -> Any:
        assert sequences == 1, "no batch here"
        return self

    @property
    def copied(self) -> CopyMemory:
        """Nothing is learnt from text to text."""
        return CopyMemory()

    def begin(self, cache: PromptCache, temperature: float, *, among: bool = False) -> None:
        """Texts are all alike."""

    def price(self, step: ObservedStep) -> float | None:
        return None

    def reflect(self) -> None:
        """There is nothing to do."""

    def num_nodes_to_verify(self, tree: HostTree, context: int) -> int:
        raise AssertionError("nothing is drafted in the step before")


class VerifyingAll(ScriptedPlanner):
    """One that has drafts verified whole, each level half as likely as the one before; it keeps
    what it hears of.
    """

    def __init__(self) -> None:
        self.steps: list[ObservedStep] = []

    def guess_chances(self, tree: HostTree) -> list[float]:
        return [0.5**depth for depth in tree.depths]

    def num_nodes_to_verify(self, tree: HostTree, context: int) -> int:
        return len(tree.tokens) - 1

    def observe(self, step: ObservedStep) -> None:
        self.steps.append(step)


def path_along(tree: HostTree, text: Sequence[int]) -> tuple[int, ...]:
    """How far a text that goes on after a tree's root goes along with the tree."""
    path = [0]
    for token in text:
        child = tree.child(path[-1], token)
        if child is None:
            break
        path.append(child)
    return tuple(path)


def assert_planned_as_plain(
    planner: Any, max_tokens: int, sampling: SamplingConfig, kind: str = "beam search"
) -> AcceptanceStats:
    """A planned text, and what it leaves in the cache, are the plain loop's."""
    model = KINDS[kind]()
    cache, stats = model.make_cache(), AcceptanceStats()
    config = DecodingConfig(max_tokens, sampling)
    stream = decode(model, PROMPT, config, cache=cache, stats=stats, planner=planner)
    text = [decoded.token for decoded in stream]
    assert text == plain(PROMPT, max_tokens, sampling)
    assert_consistent(cache, PROMPT + text[:-1])
    return stats


class Evaluations:
    """Counts evaluations, and notes what was evaluated and what the loop read back."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.launched: list[set[int]] = []
        self.read: set[int] = set()
        self.waits = 0
        self._alive: list[Any] = []
        launch, wait, numbers = mx.async_eval, mx.eval, sequences.read_numbers

        def async_eval(*arrays: Any) -> None:
            self.launched.append({id(array) for _, array in tree_flatten(list(arrays))})
            self._alive.append(arrays)
            launch(*arrays)

        def evaluate(*arrays: Any) -> None:
            self.waits += 1
            wait(*arrays)

        def read(array: mx.array) -> tuple[Any, ...]:
            self.read.add(id(array))
            return numbers(array)

        patch.setattr(sequences, "read_numbers", read)
        patch.setattr(trees, "read_numbers", read)
        patch.setattr(mx, "async_eval", async_eval)
        patch.setattr(mx, "eval", evaluate)
