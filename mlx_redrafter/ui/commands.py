"""``python -m mlx_redrafter``: says what there is, and runs it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from ..system.launched import launched_rank
from .entry import SUCCESS, command_line
from .parsing import OneSentenceParser

NAME = "python -m mlx_redrafter"
# Command: the module of its ``main``, what it does.
COMMANDS = {
    "chat": ("chat.main", "talk to a model in the terminal, or answer one --prompt"),
    "server": ("cli.serve", "serve models by the APIs of OpenAI and Anthropic"),
    "convert": ("cli.convert", "turn a checkpoint, and a drafter, into a bundle"),
    "train": ("cli.train", "make a drafter for a model from the model itself"),
    "plan": ("cli.plan", "what drafting costs and promises on this machine"),
    "benchmark": ("cli.benchmark", "measure decoding against mlx-lm's"),
}


@command_line(NAME)
def main(arguments: Sequence[str]) -> int:
    """Run a command, or list them.

    Args:
        arguments: The command and its own arguments.

    Returns:
        The command's exit code.
    """
    lines = [
        f"  {name:<{max(map(len, COMMANDS))}}  {words}" for name, (_, words) in COMMANDS.items()
    ]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        from .output import say

        if launched_rank():
            return SUCCESS
        say(f"usage: {NAME} COMMAND ...\n\ncommands:\n" + "\n".join(lines))
        say(f"\n{NAME} COMMAND --help lists a command's flags.")
        return SUCCESS
    name, *rest = arguments
    if name not in COMMANDS:
        OneSentenceParser(NAME).error(f"there is no command '{name}': {', '.join(COMMANDS)}")
    module = importlib.import_module(f".{COMMANDS[name][0]}", __package__)
    code: int = module.main(rest)
    return code


if __name__ == "__main__":
    sys.exit(main())
