"""Models for the server: loaded in the engine's thread, with what requests need to know of them."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import RedrafterError
from ..system.files import local_path
from ..text.generate import wired
from ..text.loading import load
from .metrics import Metrics
from .settings import ServerSettings
from .work.engine_sequences import EngineSequences
from .work.engine_thread import EngineThread
from .work.host import Host
from .work.prefix_cache import PrefixCache
from .work.service import ServedModel


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
    names = [spec.name for spec in specs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RedrafterError(f"Two models are called {twice}: rename one of the directories.")
    served: dict[str, ServedModel] = {}
    held = ExitStack()

    def make() -> dict[str, Host]:
        for spec in specs:
            served[spec.name] = _load(spec, settings, metrics, held, len(specs))
        return {name: model.host for name, model in served.items()}

    thread = EngineThread(make)
    thread.start()
    return thread, served


def _load(
    spec: ModelSpec, settings: ServerSettings, metrics: Metrics, held: ExitStack, models: int
) -> ServedModel:
    model, tokenizer = load(
        spec.path, spec.drafter, adapter_path=spec.adapter, plan=spec.plan, **spec.options
    )
    held.enter_context(wired(model))
    if model.planner is not None:
        # Where this machine is not known, it is measured now and not in the middle of an answer.
        _ = model.planner.costs
    prefixes = PrefixCache(settings.cache_memory // models)

    def make() -> EngineSequences:
        prefixes.clear()  # a step that failed for all may have failed for want of memory
        return EngineSequences(
            model,
            tokenizer,
            prefixes,
            max_concurrent=settings.max_concurrent,
            prefill_step_size=settings.prefill_step_size,
        )

    host = Host(spec.name, tokenizer, make, settings.max_concurrent, metrics)
    # Prompts are encoded in other threads than answers are decoded in.
    encoder: Any = copy.deepcopy(tokenizer)
    return ServedModel(
        name=spec.name,
        host=host,
        tokenizer=encoder,
        vocab_size=model.target.vocab_size,
        context_limit=model.room(settings.context_limit),
        encoding=threading.Lock(),
    )
