"""What is compared: ways to answer the same prompt with the same target."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.generate import generation_stream
from mlx_lm.generate import stream_generate as mlx_lm_stream
from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache
from mlx_lm.sample_utils import make_sampler
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..drafting.shape import BeamShape
from ..engine.model import SpeculativeModel
from ..engine.shape_planner import ShapePlanner
from ..engine.statistics import AcceptanceStats
from ..errors import RedrafterError
from ..sampling import SamplingConfig
from ..text.generate import stream_generate
from ..text.loading import load

MLX_LM = "mlx-lm"
PLAIN = "plain"
COPIED = "copies"
DRAFTED = "drafted"


@dataclass(frozen=True)
class Task:
    """What every contestant is asked to do.

    Attributes:
        tokenizer: The target's.
        max_tokens: Longest answer.
        sampling: How tokens are chosen; penalties are not used.
    """

    tokenizer: TokenizerWrapper
    max_tokens: int
    sampling: SamplingConfig


@dataclass(frozen=True)
class Answer:
    """One prompt, answered and timed.

    Attributes:
        tokens: The answer's tokens, the end-of-sequence token included.
        seconds: From the prompt's token ids to the last token, prefill included.
        first_token_seconds: To the first token.
        memory_bytes: Most that was held during the answer above what was held before it.
        stats: Steps and acceptance; None where there are none.
        at_once: Tokens that the first token's own forward produced, the first one counted.
    """

    tokens: tuple[int, ...]
    seconds: float
    first_token_seconds: float
    memory_bytes: int
    stats: AcceptanceStats | None
    at_once: int = 1


class Contestant(Protocol):
    """One way to answer."""

    @property
    def name(self) -> str:
        """Short, and its own in a comparison."""

    @property
    def description(self) -> str:
        """What it is, in words."""

    @property
    def reproducible(self) -> bool:
        """Whether its text should be plain decoding's, token for token, when sampled as well."""

    @property
    def weight_bytes(self) -> int:
        """Size of the weights it needs."""

    def tokens(self, prompt: Sequence[int], task: Task) -> Iterator[int]:
        """Answer a prompt, token by token."""

    def stats(self) -> AcceptanceStats | None:
        """Of the last answer, None where there are none."""

    def at_once(self) -> int:
        """Tokens of the last answer that came of the same forward as its first, that one too."""


def time_answer(contestant: Contestant, prompt: Sequence[int], task: Task) -> Answer:
    """Have a prompt answered from an empty cache, and take the time."""
    gc.collect()  # the answer before must not be in this one's memory or time
    mx.synchronize()
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    tokens: list[int] = []
    start = time.perf_counter()
    first = 0.0
    for token in contestant.tokens(prompt, task):
        if not tokens:
            first = time.perf_counter() - start
        tokens.append(token)
    seconds = time.perf_counter() - start
    extra = max(0, mx.get_peak_memory() - held)
    stats, at_once = contestant.stats(), contestant.at_once()
    return Answer(tuple(tokens), seconds, first, extra, stats, at_once)


def settle() -> None:
    """Wait for the token after the last one, which mlx-lm computes as well.

    It does so in a stream of its own, whose exchanges with other processes would get among those
    that come next.
    """
    mx.synchronize(generation_stream)


def weight_bytes(*modules: nn.Module) -> int:
    """Size of the parameters of modules."""
    return sum(value.nbytes for module in modules for _, value in tree_flatten(module.parameters()))


class MlxLm:
    """mlx-lm's own decoding, of the target alone.

    Args:
        model: The model; only its target is used.
    """

    name = MLX_LM
    description = "mlx_lm.stream_generate"
    reproducible = False  # mlx-lm draws samples from a sequence of random numbers

    def __init__(self, model: SpeculativeModel):
        self._target = model.target
        self._model = model.target.model
        self._shared = model.ranks is not None
        self.weight_bytes = weight_bytes(self._model)

    def tokens(self, prompt: Sequence[int], task: Task) -> Iterator[int]:
        """Answer a prompt, token by token."""
        self._target.take_cores(len(prompt))
        for response in _mlx_lm(self._model, prompt, task):
            self._target.take_cores(1)  # as plain decoding here has them
            yield response.token
        if self._shared:
            settle()

    def stats(self) -> AcceptanceStats | None:
        """None: nothing is drafted."""
        return None

    def at_once(self) -> int:
        """One: nothing is drafted."""
        return 1


class TwoModels:
    """mlx-lm's speculative decoding with a smaller model that drafts.

    Args:
        model: The model; only its target is used.
        draft_model: The smaller model, mlx-lm's.
        draft_tokens: Tokens it drafts in a step.

    Raises:
        RedrafterError: If mlx-lm cannot take rejected drafts back from one of the models' caches.
    """

    reproducible = False

    def __init__(self, model: SpeculativeModel, draft_model: nn.Module, draft_tokens: int):
        for role, module in (("target", model.target.model), ("draft model", draft_model)):
            if not can_trim_prompt_cache(make_prompt_cache(module)):
                raise RedrafterError(
                    f"mlx-lm cannot draft with two models here, because the {role}'s cache cannot "
                    "be trimmed: leave --draft-model out."
                )
        self.name = f"two models, {draft_tokens}"
        self.description = f"mlx_lm.stream_generate, draft_model, num_draft_tokens={draft_tokens}"
        self._target = model.target
        self._model, self._draft_model = model.target.model, draft_model
        self._shared = model.ranks is not None
        self._draft_tokens = draft_tokens
        self._drafted: list[bool] = []
        self._task: Task | None = None
        self.weight_bytes = weight_bytes(self._model, draft_model)

    def tokens(self, prompt: Sequence[int], task: Task) -> Iterator[int]:
        """Answer a prompt, token by token."""
        self._drafted, self._task = [], task
        self._target.take_cores(self._draft_tokens + 1)  # as drafted decoding here has them
        options = {"draft_model": self._draft_model, "num_draft_tokens": self._draft_tokens}
        for response in _mlx_lm(self._model, prompt, task, **options):
            self._drafted.append(response.from_draft)
            yield response.token
        if self._shared:
            settle()

    def stats(self) -> AcceptanceStats | None:
        """Steps as they can be told from which tokens came from the draft."""
        if self._task is None:
            return None
        return stats_of_drafted(self._drafted, self._draft_tokens, self._task.max_tokens)

    def at_once(self) -> int:
        """The tokens of its first step."""
        own = next((i for i, drafted in enumerate(self._drafted, 1) if not drafted), None)
        return own or len(self._drafted)


class Ours:
    """Decoding of this package, plain or drafted.

    Args:
        model: The model.
        name: What to call it.
        shape: Beam shape of every draft; None leaves it to the planner.
        planner: Chooses shapes; with neither it is plain decoding.
        copy: Whether copies of the text are drafted too.
    """

    reproducible = True

    def __init__(
        self,
        model: SpeculativeModel,
        name: str = PLAIN,
        *,
        shape: BeamShape | None = None,
        planner: ShapePlanner | None = None,
        copy: bool = False,
    ):
        self.name, self._copies = name, copy
        self.shape, self._planner = shape, planner
        self._drafts = shape is not None or planner is not None
        self._model = model
        self._stats: AcceptanceStats | None = None
        head = [model.head] if self._drafts and model.head is not None else []
        self.weight_bytes = weight_bytes(model.target.model, *head)

    @property
    def description(self) -> str:
        """What it is, in words."""
        if not self._drafts:
            return "mlx_redrafter without drafts"
        if self._model.drafter is None:
            return "mlx_redrafter, copies of the text and no drafter"
        copies = " and copies of the text" if self._copies else ""
        if self.shape is None:
            return f"mlx_redrafter, shapes by the planner{copies}"
        budget = f", {self.shape.node_budget} nodes" if self.shape.node_budget else ""
        return f"mlx_redrafter, beam {self.shape.width} x {self.shape.length}{budget}{copies}"

    def tokens(self, prompt: Sequence[int], task: Task) -> Iterator[int]:
        """Answer a prompt, token by token."""
        shape = self.shape
        responses = stream_generate(
            self._model,
            task.tokenizer,
            list(prompt),
            max_tokens=task.max_tokens,
            sampling=task.sampling,
            draft=self._drafts,
            copy=self._copies,
            remember=False,  # the same prompts are answered again and again
            beam_width=shape.width if shape else None,
            beam_length=shape.length if shape else None,
            node_budget=shape.node_budget if shape else None,
            planner=self._planner,
        )
        for response in responses:
            self._stats = response.stats
            yield response.token

    def stats(self) -> AcceptanceStats | None:
        """Of the last answer."""
        return self._stats

    def at_once(self) -> int:
        """One: the prompt's own forward drafts nothing."""
        return 1


def stats_of_drafted(drafted: Sequence[bool], size: int, max_tokens: int) -> AcceptanceStats:
    """Steps of mlx-lm's two-model decoding, from whether each token came from the draft.

    A step ends with a token of the target's own, or with the text.

    Args:
        drafted: For each token of an answer.
        size: Tokens drafted in a step; fewer where ``max_tokens`` is near.
        max_tokens: Longest answer.
    """
    stats = AcceptanceStats()
    done = accepted = 0
    for index, from_draft in enumerate(drafted):
        accepted += from_draft
        if from_draft and index + 1 < len(drafted):
            continue
        emitted = index + 1 - done
        stats.record(range(1, min(size, max_tokens - done) + 1), accepted, emitted)
        done, accepted = index + 1, 0
    return stats


def load_draft_model(
    name: str, tokenizer: TokenizerWrapper, *, trust_remote_code: bool = False
) -> nn.Module:
    """The smaller model of two-model decoding.

    Raises:
        RedrafterError: If it cannot be loaded, or its tokenizer is another one.
    """
    model, own = load(name, drafter=False, trust_remote_code=trust_remote_code)
    if own.vocab_size != tokenizer.vocab_size:
        raise RedrafterError(
            f"The draft model {name} has a vocabulary of {own.vocab_size} tokens, but the target "
            f"one of {tokenizer.vocab_size}: pass a smaller model of the same family."
        )
    return model.target.model


def _mlx_lm(model: nn.Module, prompt: Sequence[int], task: Task, **options: Any) -> Any:
    sampling = task.sampling
    if sampling.temperature > 0:
        mx.random.seed(sampling.seed or 0)  # mlx-lm's samplers know no other seed
    sampler = make_sampler(
        temp=sampling.temperature, top_p=sampling.top_p, min_p=sampling.min_p, top_k=sampling.top_k
    )
    return mlx_lm_stream(
        model, task.tokenizer, list(prompt), max_tokens=task.max_tokens, sampler=sampler, **options
    )
