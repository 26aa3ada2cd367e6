"""Settings of a training run: one field serves the function, the flag and the YAML key."""

from __future__ import annotations

import difflib
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import RedrafterError
from ..ranges import option, shown
from ..system.files import local_path
from .config import check_ranges

LOSSES = ("distilled", "hard", "mix")
FEATURES = ("auto", "memory", "disk", "stream")
DTYPES = ("bfloat16", "float16", "float32")
DEFAULT_STEPS = 2000


_MODEL, _DATA, _SHAPE = "model and output", "data", "shape of the drafter"
_LOSS, _OPTIMISER, _MEMORY = "loss", "optimisation", "memory and disk"
_EVALUATION, _RUN = "evaluation", "the run"


@dataclass(frozen=True)
class TrainingOptions:
    """All settings of ``train_drafter``; each field's metadata holds its description.

    Raises:
        RedrafterError: On values that are out of range or do not go together.
    """

    model: str = option("", _MODEL, "the target: a directory or Hub repo", metavar="PATH_OR_REPO")
    output: str | None = option(
        None, _MODEL, "where the drafter goes (default: drafter/ in a local --model)", metavar="DIR"
    )
    adapter_path: str | None = option(
        None, _MODEL, "a fine-tuned adapter of the target (LoRA, DoRA)", metavar="DIR"
    )
    revision: str | None = option(
        None, _MODEL, "branch, tag or commit of --model on the Hub", metavar="NAME"
    )
    trust_remote_code: bool = option(
        False, _MODEL, "let Python files that come with the model run on this machine"
    )
    tokenizer_config: dict[str, Any] | None = option(
        None, _MODEL, "overrides of tokenizer_config.json", metavar="JSON"
    )
    model_config: dict[str, Any] | None = option(
        None, _MODEL, "overrides of config.json", metavar="JSON"
    )
    dtype: str = option("bfloat16", _MODEL, "type in which the drafter is saved", choices=DTYPES)
    overwrite: bool = option(
        False, _MODEL, "replace the drafter in --output, and start an unfinished run anew"
    )

    data: str = option(
        "", _DATA, "JSON Lines file, directory with train.jsonl (and valid.jsonl), or dataset on "
        "the Hub: chats, prompts or texts, as mlx_lm.lora takes them", metavar="DATA",
    )  # fmt: skip
    self_questions: int | None = option(
        None, _DATA, "draw so many questions from a chat model itself, after the empty user header "
        "of its template, and let it answer them; --data is not needed then", metavar="N",
    )  # fmt: skip
    held_out: int = option(
        64, _DATA, "records to evaluate on, held out where the data brings no valid split"
    )
    max_records: int | None = option(None, _DATA, "use only the first so many records")
    max_seq_length: int = option(2048, _DATA, "longer rows are cut to so many tokens")
    regenerate: bool = option(
        False, _DATA, "let the target answer the prompts itself and learn from that (recommended)"
    )
    regenerate_max_tokens: int = option(256, _DATA, "longest answer of the target")
    regenerate_temperature: float = option(0.0, _DATA, "temperature of the target's answers")
    regenerate_batch_size: int = option(32, _DATA, "prompts answered side by side")
    regenerate_prompt_tokens: int = option(16, _DATA, "of a text, how many tokens begin it")

    start_from: str | None = option(
        None, _SHAPE, "go on from this drafter, in its shape, instead of a new one: for the model "
        "quantised or fine-tuned since, or with other data", metavar="DIR_OR_REPO",
    )  # fmt: skip
    exit_dim: int | None = option(
        None, _SHAPE, "width of the head (default: twice the target's hidden size, as in the "
        "paper; the hidden size itself is the compact shape)", metavar="N",
    )  # fmt: skip
    num_draft_layers: int = option(2, _SHAPE, "residual blocks before the output rows")
    rnn: bool = option(True, _SHAPE, "gated recurrence; --no-rnn is the plain sum of embeddings")
    draft_vocab_size: int | None = option(
        None, _SHAPE, "output rows for the most frequent tokens of the data only (default: all)"
    )
    shared_rows: bool = option(
        False, _SHAPE, "use the target's own output rows instead of trained ones (compact shape)"
    )
    lookback: int | None = option(
        None, _SHAPE, "tokens before the last one that the drafter's state reads first (default: 0 "
        "as in the paper, or what --start-from has)", metavar="N",
    )  # fmt: skip
    memory: bool = option(
        False, _SHAPE, "a head that reads several layers of the target and remembers the text: it "
        "guesses best; the next six are its shape, with --exit-dim and --draft-vocab-size",
    )  # fmt: skip
    target_layers: str | None = option(
        None, _SHAPE, "layers read besides the final hidden state, counted from 0, such as 2,14 "
        "(default: an early one and one from the middle)", metavar="N,N",
    )  # fmt: skip
    state_size: int | None = option(
        None, _SHAPE, "width of its state (default: the target's hidden size, 1024 at most)"
    )
    mlp_size: int | None = option(None, _SHAPE, "width of its gated layer (default: half of that)")
    memory_heads: int = option(4, _SHAPE, "attention heads of its memory")
    memory_head_dim: int = option(48, _SHAPE, "width of each")
    memory_window: int = option(1024, _SHAPE, "tokens that a draft sees of the text")
    independent: bool = option(
        False, _SHAPE, "one head per depth over the hidden state alone (Medusa-like), to compare"
    )

    loss: str = option(
        "distilled", _LOSS, "fit the target's distributions, the text's own tokens, or a mix",
        choices=LOSSES,
    )  # fmt: skip
    hard_weight: float = option(0.5, _LOSS, "share of the text's own tokens in --loss mix")
    unroll: int = option(5, _LOSS, "draft steps fitted at each position: the beam length trained")
    depth_decay: float = option(0.9, _LOSS, "draft step k counts this to the power k - 1")
    temperature: float = option(1.0, _LOSS, "softens (above 1) or sharpens what the target teaches")
    top_k: int = option(
        32, _LOSS, "target probabilities kept at each position; the rest is fitted as one sum"
    )

    steps: int | None = option(
        None, _OPTIMISER, f"optimiser steps (default {DEFAULT_STEPS})", aliases=("iters",)
    )
    epochs: float | None = option(None, _OPTIMISER, "passes over the data, instead of --steps")
    learning_rate: float | None = option(
        None, _OPTIMISER, "peak, after a warmup, then cosine decay (default: 1e-3 for 512 "
        "positions a step, growing with the root of their number to 2e-3)",
    )  # fmt: skip
    warmup: float = option(0.03, _OPTIMISER, "share of the steps spent warming up")
    weight_decay: float = option(0.01, _OPTIMISER, "of AdamW")
    positions_per_step: int | None = option(
        None, _OPTIMISER, "positions in one forward and backward pass (default: 512 on a CPU, as "
        "many as fill an eighth of a GPU's memory, at most 16384)",
    )  # fmt: skip
    accumulate: int = option(
        1, _OPTIMISER, "passes averaged into one step", aliases=("grad_accumulation_steps",)
    )
    seed: int = option(0, _OPTIMISER, "of the weights, the order of the data and the answers")

    features: str = option(
        "auto", _MEMORY, "what the target sees, once for all: kept in memory, kept on disk, or "
        "computed anew for each step", choices=FEATURES,
    )  # fmt: skip
    cache_features: str | None = option(
        None, _MEMORY, "keep features in this directory (--features disk)", metavar="DIR"
    )
    batch_size: int = option(
        8, _MEMORY, "rows from which a step draws its positions with --features stream"
    )
    batch_tokens: int = option(4096, _MEMORY, "tokens in one forward pass of the target")

    eval_every: int = option(
        500, _EVALUATION, "steps between evaluations", aliases=("steps_per_eval",)
    )
    eval_prompts: int = option(32, _EVALUATION, "held-out prompts that are decoded")
    eval_max_tokens: int = option(64, _EVALUATION, "longest answer in an evaluation")
    eval_temperature: float = option(0.0, _EVALUATION, "sampling temperature in an evaluation")
    beam_width: int = option(4, _EVALUATION, "beams in an evaluation")
    beam_length: int = option(5, _EVALUATION, "tokens drafted ahead in an evaluation")
    patience: int | None = option(
        None, _EVALUATION, "evaluations without a better one after which the run ends"
    )

    resume: bool = option(False, _RUN, "go on with an unfinished run")
    save_every: int = option(200, _RUN, "steps between checkpoints")
    report_every: int = option(
        20, _RUN, "steps between lines of the log", aliases=("steps_per_report",)
    )

    def __post_init__(self) -> None:
        _check_required(self)
        check_ranges(self)
        _check_choices(self)
        _check_combinations(self)

    @property
    def layers(self) -> tuple[int, ...] | None:
        """``target_layers`` as numbers."""
        if self.target_layers is None:
            return None
        return tuple(int(part) for part in self.target_layers.split(",") if part.strip())

    @property
    def label_share(self) -> float:
        """Share of the text's own tokens in the loss, 0 to 1."""
        return {"distilled": 0.0, "hard": 1.0, "mix": self.hard_weight}[self.loss]

    def to_dict(self) -> dict[str, Any]:
        """All settings, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> TrainingOptions:
        """From names to values, paths among them.

        Raises:
            RedrafterError: If a name is unknown or a value of the wrong kind.
        """
        kinds = {f.name: str(f.type) for f in fields(cls)}
        given = {}
        for name, value in values.items():
            if name not in kinds:
                raise RedrafterError(_unknown(name, list(kinds)))
            value = str(value) if isinstance(value, Path) else value
            given[name] = _of_kind(name, value, kinds[name])
        return cls(**given)


def read_config(path: str | Path) -> dict[str, Any]:
    """Settings of a YAML file, the keys being the names of the options (or mlx_lm.lora's).

    Raises:
        RedrafterError: If it is missing, not YAML, or has an unknown key.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """With 1e-3 read as a number, which plain YAML 1.1 takes for a word."""

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )
    try:
        text = local_path(path).read_text("utf-8")
        values = yaml.load(text, Loader)
    # Beside its own kind YAML raises what dates and nesting make of its constructors.
    except (OSError, ValueError, RecursionError, TypeError, yaml.YAMLError) as error:
        told = error.strerror if isinstance(error, OSError) else None
        reason = " ".join(str(told or error).split()).removesuffix(".")
        raise RedrafterError(f"The configuration {path} cannot be read: {reason}.") from error
    if not isinstance(values, dict):
        raise RedrafterError(f"The configuration {path} holds no settings: write 'name: value'.")
    names = {f.name: f.name for f in fields(TrainingOptions)}
    names |= {a: f.name for f in fields(TrainingOptions) for a in f.metadata.get("aliases", ())}
    found = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in names:
            raise RedrafterError(f"{path}: {_unknown(str(key), list(names))}")
        if names[name] in found:
            raise RedrafterError(
                f"{path} gives {names[name]} twice, under two names: leave {key} out."
            )
        found[names[name]] = value
    return found


def _unknown(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean '{close[0]}'?" if close else ": see the list of options."
    return f"There is no setting '{name}'{hint}"


def _of_kind(name: str, value: Any, kind: str) -> Any:
    """A value as its field wants it; a whole number will do for a float."""
    # An empty text is a shell's unset variable: taken for none given, a run with --overwrite would
    # replace the model's own drafter.
    if value is None or (isinstance(value, str) and not value and kind == "str | None"):
        return _none(name, kind, value)
    kind = kind.removesuffix(" | None")
    if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wanted = {"str": str, "int": int, "float": float, "bool": bool, "dict[str, Any]": dict}[kind]
    if type(value) is not wanted:
        words = {
            "str": "a text", "int": "a whole number", "float": "a number",
            "dict[str, Any]": "names with values", "bool": "true or false",
        }  # fmt: skip
        raise RedrafterError(f"{name} is {shown(value)}, but has to be {words[kind]}.")
    return value


def _none(name: str, kind: str, value: str | None) -> None:
    if value is not None or not kind.endswith("None"):
        raise RedrafterError(f"{name} is empty: give it a value, or leave it out.")


def _check_required(options: TrainingOptions) -> None:
    if not options.model:
        raise RedrafterError("No model was given: pass --model, the target.")
    if not options.data and options.self_questions is None:
        raise RedrafterError(
            "No data was given: pass --data, what to learn from, or --self-questions N to have a "
            "chat model write it."
        )
    path = local_path(options.model)
    if options.output is None and not (path.is_dir() or (path.suffix == ".gguf" and path.exists())):
        raise RedrafterError(
            f"{options.model} is no local directory that the drafter could go into: pass --output."
        )


def _check_choices(options: TrainingOptions) -> None:
    for one in fields(TrainingOptions):
        value, choices = getattr(options, one.name), one.metadata.get("choices")
        if choices is not None and value not in choices:
            raise RedrafterError(f"{one.name} is '{value}': choose one of {', '.join(choices)}.")


def _check_combinations(options: TrainingOptions) -> None:
    if options.steps is not None and options.epochs is not None:
        raise RedrafterError("Both steps and epochs were given: choose one of them.")
    if options.cache_features is not None and options.features not in ("auto", "disk"):
        raise RedrafterError(
            f"cache_features keeps features on disk, but features is '{options.features}': "
            "leave one of them out."
        )
    _check_used(options)
    _check_memory(options)
    if options.independent and options.shared_rows:
        raise RedrafterError(
            "Independent heads have output rows of their own: leave out shared_rows."
        )
    if options.independent and options.lookback:
        raise RedrafterError("Independent heads read no tokens: leave out lookback.")
    if options.independent and options.exit_dim is not None:
        raise RedrafterError("Independent heads are as wide as the target: leave out exit_dim.")
    if options.start_from is not None:
        for other in fields(TrainingOptions):
            free = other.name in ("start_from", "lookback")  # which no weight depends on
            of_shape = other.metadata["group"] == _SHAPE and not free
            if of_shape and getattr(options, other.name) != other.default:
                raise RedrafterError(
                    f"start_from brings its drafter's own shape: leave out {other.name}."
                )
    if options.resume and options.overwrite:
        raise RedrafterError("resume goes on and overwrite starts anew: choose one of them.")


def _changed(options: TrainingOptions) -> list[str]:
    """Names of the settings that are not the defaults."""
    return [f.name for f in fields(TrainingOptions) if getattr(options, f.name) != f.default]


def _check_used(options: TrainingOptions) -> None:
    """Refuse what would do nothing without the setting that it belongs to."""
    changed = _changed(options)
    answers = [name for name in changed if name.startswith("regenerate_")]
    if answers and not options.regenerate and options.self_questions is None:
        raise RedrafterError(f"{answers[0]} is of regenerated answers: pass regenerate as well.")
    if "hard_weight" in changed and options.loss != "mix":
        raise RedrafterError("hard_weight is of the loss 'mix': pass loss mix as well.")


_OF_MEMORY = (
    "target_layers", "state_size", "mlp_size", "memory_heads", "memory_head_dim", "memory_window",
)  # fmt: skip
_NOT_OF_MEMORY = ("shared_rows", "lookback", "independent")


def refuse_disk(options: TrainingOptions) -> None:
    """Refuse features on disk, for a head with a memory.

    Raises:
        RedrafterError: If they are asked for.
    """
    if options.features == "disk" or options.cache_features is not None:
        raise RedrafterError(
            "A head with a memory learns from whole texts, of which nothing is kept on disk: leave "
            "out features and cache_features."
        )


def _check_memory(options: TrainingOptions) -> None:
    changed = _changed(options)
    if not options.memory:
        given = [name for name in _OF_MEMORY if name in changed]
        if given:
            raise RedrafterError(f"{given[0]} is of heads with a memory: pass memory as well.")
        return
    wrong = [name for name in (*_NOT_OF_MEMORY, "num_draft_layers") if name in changed]
    if not options.rnn:
        wrong.append("rnn")
    if wrong:
        raise RedrafterError(f"A head with a memory has no {wrong[0]}: leave it out.")
    refuse_disk(options)
    try:
        layers = options.layers
    except ValueError:
        raise RedrafterError(
            f"target_layers is {options.target_layers!r}, but has to be numbers, such as 2,14."
        ) from None
    if layers is not None and list(layers) != sorted(set(layers)):
        raise RedrafterError(f"target_layers is {options.target_layers}: name each once, in order.")
