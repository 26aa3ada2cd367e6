"""From a path or a Hub repo to a model, its drafter and its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, overload

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model, load_tokenizer

from ..drafting.config import AS_DRAFTER, MODEL_TYPE
from ..drafting.drafter import Drafter
from ..drafting.recorded import RecordedDrafts
from ..drafting.shared_head import share_rows
from ..engine.model import SpeculativeModel
from ..errors import RedrafterError, SharedError
from ..gguf import Progress
from ..planning.planner_for import planner_for
from ..ranges import check_flags, check_texts, function_of, of_kind
from ..system.files import local_path, require_reach
from ..system.rank_watch import current_ranks
from ..system.tensor_files import tensors_of
from ..target.casting import set_precision
from ..target.checks import check_kinds, check_weights
from ..target.target import Target
from .boundary import check_ordinary, first_forward, read_json, reading
from .bounds import check_config
from .detokenizing import complete_texts
from .drafter_files import check_pair, load_drafter, load_recorded
from .overrides import MODEL, TOKENIZER, check_overrides, check_vocabulary, overridden, remedy
from .places import (
    CONFIG_FILE,
    DRAFTER_DIRECTORY,
    RECORDED_FILE,
    WEIGHTS_FILE,
    Located,
    locate,
    silent,
)
from .sharding import check_same, fail_together, refuse_layers, shard
from .type_entry import naming_type

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapters.safetensors"
_TRUST = "trust_remote_code"


@overload
def load(
    path_or_repo: str | Path,
    drafter: str | Path | Literal[False] | None = ...,
    dtype: mx.Dtype | None = ...,
    *,
    adapter_path: str | Path | None = ...,
    tokenizer_config: Mapping[str, Any] | None = ...,
    model_config: Mapping[str, Any] | None = ...,
    trust_remote_code: bool = ...,
    revision: str | None = ...,
    lazy: bool = ...,
    return_config: Literal[False] = ...,
    plan: bool = ...,
    pipeline: bool = ...,
    progress: Progress = ...,
) -> tuple[SpeculativeModel, TokenizerWrapper]: ...


@overload
def load(
    path_or_repo: str | Path,
    drafter: str | Path | Literal[False] | None = ...,
    dtype: mx.Dtype | None = ...,
    *,
    adapter_path: str | Path | None = ...,
    tokenizer_config: Mapping[str, Any] | None = ...,
    model_config: Mapping[str, Any] | None = ...,
    trust_remote_code: bool = ...,
    revision: str | None = ...,
    lazy: bool = ...,
    return_config: Literal[True],
    plan: bool = ...,
    pipeline: bool = ...,
    progress: Progress = ...,
) -> tuple[SpeculativeModel, TokenizerWrapper, dict[str, Any]]: ...


def load(
    path_or_repo: str | Path,
    drafter: str | Path | Literal[False] | None = None,
    dtype: mx.Dtype | None = None,
    *,
    adapter_path: str | Path | None = None,
    tokenizer_config: Mapping[str, Any] | None = None,
    model_config: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    lazy: bool = False,
    return_config: bool = False,
    plan: bool = True,
    pipeline: bool = False,
    progress: Progress = silent,
) -> (
    tuple[SpeculativeModel, TokenizerWrapper]
    | tuple[SpeculativeModel, TokenizerWrapper, dict[str, Any]]
):
    """Load a target, its drafter and its tokenizer.

    The arguments of mlx-lm's ``load`` work here, all but the first by name.

    Args:
        path_or_repo: A directory in mlx-lm's layout, a GGUF file, a Hub repo with either, or
            "smollm2". With a ``drafter`` directory inside it is a bundle. A GGUF file is
            converted once, into the user's cache.
        drafter: A drafter's directory or Hub repo, instead of the bundle's own. Without either the
            model has none, as where this is False, and drafts nothing but copies of the text.
        dtype: Precision of unquantised weights, but for those that mlx-lm keeps as stored when it
            converts. By default as stored; on a CPU float32 throughout, because mlx multiplies
            only float32 matrices with BLAS there.
        adapter_path: A directory with a fine-tuned adapter of the target, as mlx-lm's ``load``
            takes it (LoRA, DoRA or full weights).
        tokenizer_config: Overrides of tokenizer_config.json.
        model_config: Overrides of config.json.
        trust_remote_code: Whether Python files that come with the model may run, for the model
            and for its tokenizer.
        revision: Branch, tag or commit of ``path_or_repo`` on the Hub.
        lazy: Whether weights are read when they are first used, which mlx can only do in the thread
            that loaded them. Numbers that are not finite, and what only a first forward shows, are
            then not looked for.
        return_config: Whether the configuration comes as a third value, as mlx-lm has it:
            config.json with ``model_config``, and with the ends that generation_config.json names.
        plan: Whether the model gets a planner, which drafts only as far as that pays. It measures
            the machine for some seconds when the first text is generated, or without a drafter
            when there is something to copy, unless it is known from an earlier run. False drafts
            the default beam shape.
        pipeline: Where ``mlx.launch`` started several processes, which then share the target:
            whole layers for each, instead of a part of each layer.
        progress: Told the stage of a conversion, the bytes done and those in all.

    Returns:
        The model, whose ``target.model`` is mlx-lm's, and mlx-lm's tokenizer; and the
        configuration, if asked for.

    Raises:
        RedrafterError: If something is missing, unreadable or does not fit together.
    """
    ranks = current_ranks()
    with fail_together(ranks):
        _check_places(path_or_repo, drafter, adapter_path)
        check_overrides(dtype, tokenizer_config, model_config)
        check_flags(trust_remote_code=trust_remote_code, lazy=lazy, return_config=return_config)
        check_flags(plan=plan, pipeline=pipeline)
        check_texts(revision=revision)
        function_of(progress, "progress", "a function of (stage, bytes done, bytes in all)")
        located = locate(path_or_repo, revision=revision, progress=progress)
        path = located.directory
        config = {**_check_is_model(path, path_or_repo), **(model_config or {})}
        shapes = tensors_of(sorted(path.glob("model*.safetensors")))
        with overridden(MODEL, model_config):
            check_config(config, shapes, path / CONFIG_FILE)
            model, stated = _load_model(
                path, _adapter_directory(adapter_path), dict(model_config or {}), trust_remote_code
            )
            read_tokenizer = partial(
                _load_tokenizer, path, stated, model_config=model_config, trust=trust_remote_code
            )
            tokenizer = read_tokenizer(dict(tokenizer_config or {}))
        drafter_path = _drafter_directory(drafter, located)
    if ranks is not None:
        if adapter_path is not None:
            raise SharedError(
                "Adapters cannot be used by several processes together: fuse the adapter into the "
                "model first (mlx_lm.fuse)."
            )
        drafter_files = []
        if drafter_path is not None:
            drafter_files = [drafter_path / WEIGHTS_FILE, *drafter_path.glob(RECORDED_FILE)]
        options = {"dtype": dtype, "tokenizer_config": tokenizer_config, "pipeline": pipeline}
        options |= {"lazy": lazy, "plan": plan}
        weights = sorted(path.glob("model*.safetensors"))
        check_same(ranks, config, weights, drafter_files, options)
        shard(model, config, ranks, pipeline=pipeline)
    set_precision(model, dtype)
    if not lazy:
        with ranks.told() if ranks is not None else nullcontext():
            _run_once(model, path, adapter_path, model_config)
    head: Drafter | None = None
    recorded: RecordedDrafts | None = None
    target = Target(model, "" if ranks is None else f"rank {ranks.rank} of {ranks.size}")
    if drafter_path is not None:
        with fail_together(ranks):
            head, recorded = load_drafter(drafter_path), load_recorded(drafter_path)
            try:
                check_pair(head.config, target, tokenizer, f"The drafter in {drafter_path}")
            except RedrafterError as error:
                check_vocabulary(tokenizer_config, tokenizer, read_tokenizer, error)
                raise
            if pipeline and ranks is not None:
                refuse_layers(head.config.target_layers)
        set_precision(head, dtype)
        if head.needs_rows:
            share_rows(head, target)
    if not lazy:
        if head is not None and drafter_path is not None:
            check_weights(head, drafter_path / WEIGHTS_FILE)
        target.check(path)
    loaded = SpeculativeModel(
        target, head, name=located.name, config=config, ranks=ranks, recorded=recorded
    )
    if plan:
        loaded.plan_with(lambda: planner_for(loaded, at_once=False))
    return (loaded, tokenizer, stated) if return_config else (loaded, tokenizer)


def _check_places(path_or_repo: Any, drafter: Any, adapter_path: Any) -> None:
    """Refuse what names no directory, file or repo."""
    place = (str, Path)
    of_kind(path_or_repo, "path_or_repo", place, "a path or the name of a Hub repo")
    if drafter is not None and drafter is not False:
        of_kind(drafter, "drafter", place, "a path, the name of a Hub repo, or False")
    if adapter_path is not None:
        of_kind(adapter_path, "adapter_path", place, "a path")
    named = {"model": path_or_repo, "drafter": drafter, "adapter_path": adapter_path}
    for name, given in named.items():
        if given == "":  # which would be the current directory
            raise RedrafterError(
                f"{name} is empty: give a path or the name of a Hub repo, or leave it out."
            )


def _drafter_directory(
    drafter: str | Path | Literal[False] | None, located: Located
) -> Path | None:
    """Where the drafter is; None where the model has none, or is to have none."""
    if drafter is False:
        return None
    if drafter is not None:
        return resolve_path(drafter)
    path = located.drafter or located.directory / DRAFTER_DIRECTORY
    # A directory that only holds the files of an unfinished training run is no drafter yet.
    found = any((path / name).is_file() for name in (CONFIG_FILE, WEIGHTS_FILE))
    return path if found else None


def _load_model(
    path: Path, adapter: Path | None, model_config: dict[str, Any], trust_remote_code: bool
) -> tuple[nn.Module, dict[str, Any]]:
    """Model and configuration as mlx-lm has them, the weights still lazy.

    Errors name the part that could not be read: the model, or its adapter.
    """
    with reading(f"{path} by mlx-lm", remedy(model_config=model_config)), _asking_for_trust(path):
        model, config = load_model(
            path, lazy=True, model_config=model_config, trust_remote_code=trust_remote_code
        )
    if adapter is not None:
        with reading(f"{path} with the adapter {adapter}", "pass the adapter of this model"):
            model = load_adapters(model, str(adapter))
            model.eval()
    return model, config


def _load_tokenizer(
    path: Path,
    config: dict[str, Any],
    overrides: dict[str, Any],
    *,
    model_config: Mapping[str, Any] | None,
    trust: bool,
) -> TokenizerWrapper:
    """The tokenizer as mlx-lm has it."""
    blame = naming_type(config, path / CONFIG_FILE)
    advice = remedy(tokenizer_config=overrides, model_config=model_config)
    with (
        overridden(TOKENIZER, overrides), blame,
        reading(f"the tokenizer in {path}", advice), _asking_for_trust(path),
    ):  # fmt: skip
        tokenizer = load_tokenizer(
            path,
            {_TRUST: trust, **overrides},
            eos_token_ids=config.get("eos_token_id"),
        )
        complete_texts(tokenizer)
        _try_tokenizer(tokenizer)
    return tokenizer


@contextmanager
def _asking_for_trust(path: Path) -> Iterator[None]:
    """Name the flag where mlx-lm or transformers would not run a checkpoint's own code."""
    try:
        yield
    except (ValueError, ImportError) as error:
        if _TRUST not in str(error):
            raise
        raise RedrafterError(
            f"{path} comes with Python files of its own, which are not run unless you trust them: "
            "pass --trust-remote-code (trust_remote_code=True)."
        ) from error


def _try_tokenizer(tokenizer: TokenizerWrapper) -> None:
    """Use a tokenizer once, so that a damaged one hears of here."""
    ids = tokenizer.encode("Hello.")
    tokenizer.decode(ids)
    detokenizer = tokenizer.detokenizer
    for token in ids:
        detokenizer.add_token(token)
    detokenizer.finalize()
    if not all(isinstance(token, int) for token in tokenizer.eos_token_ids):
        raise ValueError(f"eos_token_id is {sorted(map(str, tokenizer.eos_token_ids))}")


def _run_once(
    model: nn.Module,
    path: Path,
    adapter: str | Path | None,
    model_config: Mapping[str, Any] | None,
) -> None:
    """Read the weights and run one token, before anything of this package touches the model."""
    check_kinds(model, path)
    with reading(f"the weights in {path}"):
        mx.eval(model.parameters())
    check_weights(model, path)
    advice = remedy(model_config=model_config)
    with overridden(MODEL, model_config), first_forward(path, adapter, advice):
        mx.eval(model(mx.array([[0]]), cache=make_prompt_cache(model)))


def resolve_path(path_or_repo: str | Path, revision: str | None = None) -> Path:
    """The directory or file that a name stands for, downloaded or converted where needed.

    Raises:
        RedrafterError: If there is none; see :func:`mlx_redrafter.text.places.locate`.
    """
    return locate(path_or_repo, revision=revision).directory


def _check_is_model(path: Path, asked: str | Path) -> dict[str, Any]:
    """The configuration of a model's directory."""
    if not path.is_dir():
        raise RedrafterError(f"{asked} is a file, not a model directory: pass the directory.")
    config = read_json(path / CONFIG_FILE, "a model directory")
    if config.get("model_type") == MODEL_TYPE:
        raise RedrafterError(f"{asked} is a drafter: {AS_DRAFTER}.")
    if "model_type" not in config:
        raise RedrafterError(f"{path / CONFIG_FILE} names no model_type, so it is not a model's.")
    check_ordinary(path)
    if not any(path.glob("model*.safetensors")):
        raise RedrafterError(
            f"{asked} holds no safetensors weights: convert it first, with convert.py."
        )
    return config


def _adapter_directory(path: str | Path | None) -> Path | None:
    if path is None:
        return None
    directory = local_path(path)
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        require_reach(directory / name)
        if not (directory / name).is_file():
            raise RedrafterError(f"{path} has no {name}, so it is not an adapter's directory.")
    config = read_json(directory / ADAPTER_CONFIG, "an adapter's directory")
    check_config(config, tensors_of([directory / ADAPTER_WEIGHTS]), directory / ADAPTER_CONFIG)
    _check_adapter(config, directory / ADAPTER_CONFIG)
    return directory


def _check_adapter(config: dict[str, Any], path: Path) -> None:
    """Refuse an adapter whose configuration lacks what mlx-lm makes its layers by."""
    if config.get("fine_tune_type") == "full":
        return
    shape = config.get("lora_parameters")
    wanted = {"num_layers": config, "rank": shape, "scale": shape, "dropout": shape}
    for key, values in wanted.items():
        given = values.get(key) if isinstance(values, dict) else None
        if not isinstance(given, int if key in ("num_layers", "rank") else int | float):
            what = key if values is config else f"lora_parameters with a number as {key}"
            raise RedrafterError(
                f"{path} has no {what}, so it is none of mlx-lm's: pass an adapter that "
                "mlx_lm.lora trained, or fuse this one into its model where it was made."
            )
