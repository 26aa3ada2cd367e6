"""The chat's command line, read without importing anything slow."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from .chat.settings import ChatSettings

DEFAULTS = ChatSettings()
# The engine checks these as well; told here, a slip costs no loading time.
LARGEST_SEED = 2**63 - 1
WIDEST_BEAM = 1024
LONGEST_BEAM = 64


@dataclass(frozen=True)
class ChatOptions:
    """What the command line asked for.

    Attributes:
        model: Directory or Hub repo of the target.
        drafter: Directory or Hub repo of the drafter, None for the bundle's own.
        adapter: Directory of a fine-tuned adapter of the target, None for none.
        settings: How answers are made, to begin with.
        prompt: One question to answer before leaving, None for a conversation.
        recalibrate: Whether to measure the machine again for the planner.
        json: Whether the statistics of that answer follow it as one line of JSON.
    """

    model: str
    drafter: str | None
    adapter: str | None
    settings: ChatSettings
    prompt: str | None
    recalibrate: bool
    json: bool


class OneSentenceParser(argparse.ArgumentParser):
    """A parser whose complaints are one sentence, without the page of usage above it."""

    def error(self, message: str) -> NoReturn:
        """Print the sentence and leave with code 2."""
        sys.stderr.write(f"{self.prog}: {message} (--help lists the flags)\n")
        sys.exit(2)


def parse_chat_options(arguments: Sequence[str], default_model: Path) -> ChatOptions:
    """Read the chat's flags; leaves with code 2 and one sentence where they make no sense.

    Args:
        arguments: The command line without the program's name.
        default_model: The bundle to use where no --model is given.
    """
    parser = build_parser()
    values = parser.parse_args(arguments)
    if values.json and values.prompt is None:
        parser.error("--json needs --prompt: it reports on one answer")
    if values.prompt is not None and not values.prompt.strip():
        parser.error("--prompt is empty: pass the question to answer")
    if values.model is None and not default_model.is_dir():
        parser.error(f"the pocket bundle is not at {default_model}: pass --model PATH_OR_REPO")
    settings = ChatSettings(
        temperature=values.temp,
        top_p=values.top_p,
        top_k=values.top_k,
        min_p=values.min_p,
        seed=values.seed,
        max_tokens=values.max_tokens,
        system=values.system or None,
        draft=not values.no_draft,
        beam_width=values.beam_width,
        beam_length=values.beam_length,
        node_budget=values.node_budget,
    )
    return ChatOptions(
        model=values.model if values.model is not None else str(default_model),
        drafter=values.drafter,
        adapter=values.adapter_path,
        settings=settings,
        prompt=values.prompt,
        recalibrate=values.recalibrate,
        json=values.json,
    )


def build_parser() -> argparse.ArgumentParser:
    """The parser; flags that mlx_lm.chat has too carry its names."""
    parser = OneSentenceParser(
        prog="chat",
        allow_abbrev=False,
        description="Chat with a local model; a recurrent drafter guesses ahead and the model "
        "checks, so the words are the model's own, only sooner.",
        epilog="In the conversation, /help lists the commands. Without a terminal the same "
        "conversation runs as plain text, one question or command a line.",
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model", metavar="PATH_OR_REPO", help="the target; default: the pocket bundle"
    )
    model.add_argument(
        "--drafter", metavar="PATH_OR_REPO", help="a drafter other than the bundle's own"
    )
    model.add_argument(
        "--adapter-path", metavar="PATH", help="a fine-tuned adapter of the target (LoRA, DoRA)"
    )
    model.add_argument("--no-draft", action="store_true", help="start with plain decoding")
    _add_answer_flags(parser.add_argument_group("answers"))
    _add_beam_flags(parser.add_argument_group("drafting"))
    once = parser.add_argument_group("one answer")
    once.add_argument("--prompt", metavar="TEXT", help="answer this and exit")
    once.add_argument(
        "--json",
        action="store_true",
        help="with --prompt: end with one line of JSON, the statistics of the answer",
    )
    return parser


def _add_answer_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--temp",
        type=temperature,
        metavar="X",
        default=DEFAULTS.temperature,
        help="sampling temperature; 0, the default, takes the likeliest token",
    )
    group.add_argument(
        "--top-p",
        type=top_p,
        metavar="P",
        default=DEFAULTS.top_p,
        help="sample from the likeliest tokens that make up this share; 1 is all",
    )
    group.add_argument(
        "--top-k",
        type=count(0),
        metavar="K",
        default=DEFAULTS.top_k,
        help="sample from the K likeliest tokens; 0 is all",
    )
    group.add_argument(
        "--min-p",
        type=min_p,
        metavar="P",
        default=DEFAULTS.min_p,
        help="leave out tokens less likely than this share of the likeliest; 0 is none",
    )
    group.add_argument(
        "--seed",
        type=count(0, LARGEST_SEED),
        metavar="N",
        default=DEFAULTS.seed,
        help=f"the same seed gives the same words; default {DEFAULTS.seed}",
    )
    group.add_argument(
        "--max-tokens",
        "-m",
        type=count(1),
        metavar="N",
        default=DEFAULTS.max_tokens,
        help=f"longest answer; default {DEFAULTS.max_tokens}",
    )
    group.add_argument(
        "--system", "--system-prompt", metavar="TEXT", help="instruction above the conversation"
    )


def _add_beam_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--beam-width",
        type=count(1, WIDEST_BEAM),
        metavar="W",
        help="beams kept while drafting",
    )
    group.add_argument(
        "--beam-length", type=count(1, LONGEST_BEAM), metavar="L", help="tokens drafted ahead"
    )
    group.add_argument(
        "--node-budget",
        type=count(1, WIDEST_BEAM),
        metavar="N",
        help="drafted tokens the target checks at once; default: all the beams opened",
    )
    group.add_argument(
        "--recalibrate",
        action="store_true",
        help="measure again what drafting costs on this machine; without beam flags a planner "
        "chooses the shape, or plain decoding, by that",
    )


def count(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """A reader of whole numbers from ``minimum`` to ``maximum``."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise argparse.ArgumentTypeError(
                f"a whole number of at least {minimum} is needed, not '{text}'"
            )
        if maximum is not None and value > maximum:
            raise argparse.ArgumentTypeError(f"at most {maximum} is possible, not '{text}'")
        return value

    return read


def temperature(text: str) -> float:
    """Read a temperature: a finite number, zero or more."""
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"a number of at least 0 is needed, not '{text}'")
    return value


def top_p(text: str) -> float:
    """Read a share of probability: a number above 0, at most 1."""
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"a number above 0 and at most 1 is needed, not '{text}'")
    return value


def min_p(text: str) -> float:
    """Read a least probability: a number from 0 to 1."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"a number from 0 to 1 is needed, not '{text}'")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
