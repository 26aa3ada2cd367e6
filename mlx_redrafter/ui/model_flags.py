"""The flags that say which model, the same for every command."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RedrafterError
from ..system.own_models import pocket_path
from .flags import flag

_MODEL = "model"


@dataclass(frozen=True)
class LoadFlags:
    """How a model is loaded, see :func:`mlx_redrafter.load`."""

    drafter: str | None = flag(
        None, _MODEL, "a drafter other than the bundle's own", metavar="PATH_OR_REPO", own=True
    )
    adapter_path: str | None = flag(
        None, _MODEL, "a fine-tuned adapter of the target (LoRA, DoRA)", metavar="PATH", own=True
    )
    revision: str | None = flag(
        None, _MODEL, "branch, tag or commit of the model on the Hub", metavar="NAME"
    )
    trust_remote_code: bool = flag(
        False, _MODEL, "let Python files that come with the model run on this machine"
    )
    tokenizer_config: dict[str, Any] | None = flag(
        None, _MODEL, "overrides of tokenizer_config.json", metavar="JSON"
    )
    model_config: dict[str, Any] | None = flag(
        None, _MODEL, "overrides of config.json", metavar="JSON"
    )

    pipeline: bool = flag(
        False, _MODEL, "with mlx.launch: whole layers on each machine, not a part of each layer"
    )

    def load_options(self) -> dict[str, Any]:
        """Keyword arguments for :func:`mlx_redrafter.load`."""
        return {
            "drafter": self.drafter,
            "adapter_path": self.adapter_path,
            "revision": self.revision,
            "trust_remote_code": self.trust_remote_code,
            "tokenizer_config": self.tokenizer_config,
            "model_config": self.model_config,
            "pipeline": self.pipeline,
        }


@dataclass(frozen=True)
class ModelFlags(LoadFlags):
    """Which model, and how it is loaded."""

    model: str | None = flag(
        None, _MODEL, "a bundle or any mlx-lm model; default: the pocket", metavar="PATH_OR_REPO",
        own=True,
    )  # fmt: skip

    def load_words(self) -> list[str]:
        """The flags that a printed command needs to load the same model again."""
        words = ["--trust-remote-code"] if self.trust_remote_code else []
        return words + (["--revision", self.revision] if self.revision else [])

    @property
    def path(self) -> str:
        """The model, the pocket where none was named.

        Raises:
            RedrafterError: If the pocket is not there.
        """
        return self.model if self.model is not None else str(pocket_or_refuse())


def pocket_or_refuse() -> Path:
    """Where the pocket bundle is.

    Raises:
        RedrafterError: If it is not there.
    """
    path = pocket_path()
    if not path.is_dir():
        raise RedrafterError(
            f"The pocket bundle is not at {path}: pass --model PATH_OR_REPO, or install the "
            "package again."
        )
    return path


def chat_command(model: object, *more: object) -> str:
    """A command that starts the chat, quoted so that a shell takes it as it stands."""
    return shlex.join([*_chat_program(), "--model", str(model), *map(str, more)])


def _chat_program() -> list[str]:
    """How the chat is started from where this command was."""
    started = Path(sys.argv[0] if sys.argv else "")
    beside = started.with_name("chat.py")
    if started.name == "convert.py" and beside.is_file():
        return ["python", str(beside)]
    if Path("chat.py").is_file() and Path("mlx_redrafter").is_dir():
        return ["python", "chat.py"]
    return ["python", "-m", "mlx_redrafter", "chat"]
