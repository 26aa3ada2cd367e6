"""Models for the server: loaded in the engine's thread, with what requests need to know of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..engine.model import SpeculativeModel
from ..errors import SharedError
from ..system.files import local_path
from ..system.rank_watch import current_ranks
from ..system.ranks import Ranks
from ..text.generate import wired
from ..text.loading import load
from ..text.structured import prepare
from .metrics import Metrics
from .settings import ServerSettings
from .work.engine_sequences import EngineSequences
from .work.engine_thread import Companions, EngineThread
from .work.host import Host
from .work.lockstep import LedSequences, follow, leave, rest, rouse
from .work.prefix_cache import PrefixCache
from .work.sequences import Sequences
from .work.service import Encoder, ServedModel


@dataclass(frozen=True)
class ModelSpec:
    """A model to serve.

    Attributes:
        path: Directory or Hub repo.
        drafter: Another drafter than the bundle's own; False for none.
        adapter: Directory of a fine-tuned adapter, None for none.
        plan: Whether it drafts only as far as that pays; see ``mlx_redrafter.load``.
        options: Further arguments of ``mlx_redrafter.load``.
    """

    path: str
    drafter: str | Literal[False] | None = None
    adapter: str | None = None
    plan: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Under which requests ask for it: a directory's own name, or the repo's; no path."""
        path = local_path(self.path)
        return path.resolve().name if path.exists() else self.path


def load_models(
    specs: Sequence[ModelSpec], settings: ServerSettings, metrics: Metrics
) -> tuple[EngineThread, dict[str, ServedModel]]:
    """Load all models, in a thread that then computes with them.

    Raises:
        RedrafterError: If one cannot be loaded, or two have one name.
    """
    check_names(specs)
    served: dict[str, ServedModel] = {}
    held, ranks = ExitStack(), current_ranks()

    def make() -> dict[str, Host]:
        for spec in specs:
            served[spec.name] = _serve(spec, settings, metrics, held, len(specs))
        return {name: model.host for name, model in served.items()}

    thread = EngineThread(make, None if ranks is None else _companions(ranks))
    thread.start()
    return thread, served


def _companions(ranks: Ranks) -> Companions:
    """The other ranks, as the engine's thread speaks to them."""
    if not ranks.can_rest:
        return Companions(leave=lambda: leave(ranks))
    return Companions(lambda: rest(ranks), lambda: rouse(ranks), lambda: leave(ranks))


def follow_server(specs: Sequence[ModelSpec], settings: ServerSettings, ranks: Ranks) -> None:
    """Load the same models as rank 0, and compute with it until it leaves.

    Raises:
        RedrafterError: As :func:`load_models`.
    """
    check_names(specs)
    with ExitStack() as held:
        loaded = {spec.name: _load(spec, settings, held, len(specs)) for spec in specs}
        follow(ranks, {name: make() for name, (_, _, make) in loaded.items()})


def check_names(specs: Sequence[ModelSpec]) -> None:
    """Refuse models that requests could not tell apart.

    Raises:
        RedrafterError: Naming the second of them.
    """
    seen: dict[str, Path] = {}
    for spec in specs:
        place = local_path(spec.path).resolve()
        before = seen.setdefault(spec.name, place)
        if before is place:
            continue
        if before == place:
            raise SharedError(f"The model {spec.path} is given twice: leave one out.")
        raise SharedError(f"Two models are called {spec.name}: rename one of the directories.")


def _load(
    spec: ModelSpec, settings: ServerSettings, held: ExitStack, models: int
) -> tuple[SpeculativeModel, TokenizerWrapper, Callable[[], Sequences]]:
    """A model, its tokenizer, and what makes the sequences of it."""
    model, tokenizer = load(
        spec.path, spec.drafter, adapter_path=spec.adapter, plan=spec.plan, **spec.options
    )
    held.enter_context(wired(model))
    if model.planner is not None:
        # Where this machine is not known, it is measured now and not in the middle of an answer.
        _ = model.planner.costs
    limit = settings.cache_memory // models
    if model.ranks is not None:
        limit = int(min(row[0] for row in model.ranks.gather([float(limit)])))
    prefixes = PrefixCache(limit)

    def make() -> Sequences:
        prefixes.clear()  # a step that failed for all may have failed for want of memory
        own = EngineSequences(
            model,
            tokenizer,
            prefixes,
            max_concurrent=settings.max_concurrent,
            prefill_step_size=settings.prefill_step_size,
        )
        if model.ranks is not None and model.ranks.leads:
            return LedSequences(model.ranks, spec.name, own)
        return own

    return model, tokenizer, make


def _serve(
    spec: ModelSpec, settings: ServerSettings, metrics: Metrics, held: ExitStack, models: int
) -> ServedModel:
    model, tokenizer, make = _load(spec, settings, held, models)
    host = Host(spec.name, tokenizer, make, settings.max_concurrent, metrics)
    return ServedModel(
        name=spec.name,
        host=host,
        # Prompts are encoded in other threads than answers are decoded in.
        encoder=Encoder(copy.deepcopy(tokenizer)),
        long_encoder=Encoder(copy.deepcopy(tokenizer)),
        vocab_size=model.target.vocab_size,
        compile=partial(prepare, tokenizer),
        context_limit=model.room(settings.context_limit),
        guesses=model.drafter is not None,
        copies=settings.copies and model.target.refusal is None,
    )
