"""The chat's command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..entry import as_typed
from ..flags import add_flags, compared, flag, options_of
from ..model_flags import ModelFlags
from ..parsing import OneSentenceParser
from ..prompts import given_prompt
from .settings import ChatSettings

NAME = "chat.py"
_ONCE, _DRAFTING = "one answer", "drafting"


@dataclass(frozen=True)
class OnceFlags:
    """One answer instead of a conversation."""

    prompt: str | None = flag(
        None, _ONCE, "answer this and exit; - reads it from stdin", aliases=("p",)
    )
    json: bool = flag(
        False, _ONCE, "with --prompt: print one line of JSON instead, the answer and its statistics"
    )
    recalibrate: bool = flag(
        False, _DRAFTING, "measure again what drafting costs on this machine; without beam flags a "
        "planner chooses the shape, or plain decoding, by that",
    )  # fmt: skip


@dataclass(frozen=True)
class ChatOptions:
    """What the command line asked for.

    Attributes:
        model: Directory or Hub repo of the target.
        flags: How it is loaded.
        settings: How answers are made, to begin with.
        prompt: One question to answer before leaving, None for a conversation.
        recalibrate: Whether to measure the machine again for the planner.
        json: Whether that answer is printed as one line of JSON.
    """

    model: str
    flags: ModelFlags
    settings: ChatSettings
    prompt: str | None
    recalibrate: bool
    json: bool

    def compared(self) -> dict[str, Any]:
        """What all processes of a run have to be started with alike, by the flags' names."""
        once = OnceFlags(self.prompt, self.json, self.recalibrate)
        return compared(self.flags, self.settings, once)


def build_parser() -> argparse.ArgumentParser:
    """The parser; flags that mlx_lm.chat and mlx_lm.generate have too carry their names."""
    parser = OneSentenceParser(
        as_typed(f"python {NAME}"),
        description="Chat with a local model; a recurrent drafter guesses ahead and the model "
        "checks, so the words are the model's own, only sooner.",
        epilog="In the conversation, /help lists the commands. Without a terminal the same "
        "conversation runs as plain text, one question or command a line. Exit codes: 0, 2 where "
        "something has to be changed (also where no piped question could be answered), 130 after "
        "Ctrl-C, 1 for a bug.",
    )
    add_flags(parser, ModelFlags, ChatSettings, OnceFlags)
    return parser


def parse_chat_options(arguments: Sequence[str]) -> ChatOptions:
    """Read the chat's flags; leaves with code 2 and one sentence where they make no sense.

    Args:
        arguments: The command line without the program's name.

    Raises:
        RedrafterError: If no model was named and the pocket is not there, or a prompt on stdin is
            missing.
    """
    parser = build_parser()
    values = parser.parse_args(arguments)
    once = options_of(OnceFlags, values)
    flags = options_of(ModelFlags, values)
    if once.json and once.prompt is None:
        parser.error("--json needs --prompt: it reports on one answer")
    if once.prompt is not None and not once.prompt.strip():
        parser.error("--prompt is empty: pass the question to answer")
    model = flags.path
    return ChatOptions(
        model=model,
        flags=flags,
        settings=options_of(ChatSettings, values),
        prompt=None if once.prompt is None else given_prompt(once.prompt),
        recalibrate=once.recalibrate,
        json=once.json,
    )
