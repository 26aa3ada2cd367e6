"""The commands of the chat: a table of small functions."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ...drafting.shape import BeamShape
from ...errors import RedrafterError
from ...sampling import SamplingConfig
from ...system.files import is_there, local_path
from .. import parsing as arguments
from ..cli.plan_view import plan_report
from ..flags import read_option
from . import views
from .conversation_file import Conversation, load_conversation, save_conversation
from .planning import plan
from .resuming import cut_mark
from .session import Session
from .turns import show_answer

if TYPE_CHECKING:
    from .frontend import FrontEnd

Number = TypeVar("Number", int, float)


OVERWRITE = "--overwrite"
# How alike a word and a command are, from 0 to 1, where that is a slip of the fingers.
ALIKE = 0.75


class Quit(Exception):
    """The person wants to leave."""


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        usage: How it is written.
        words: What it does.
        run: Does it, given the session, the front end and what follows the name.
    """

    usage: str
    words: str
    run: Callable[[Session, FrontEnd, str], None]

    @property
    def alone(self) -> bool:
        """Whether nothing may follow its name; what follows /help does no harm."""
        return " " not in self.usage and self.usage != "/help"


# As one leaves mlx_lm.chat, Python or a shell.
WORDS = dict.fromkeys(("q", "quit", "exit"), "/quit")


def is_command(line: str) -> bool:
    """Whether a line is a command and not a question; a space in front makes it a question."""
    return line.startswith("/") or line.rstrip() in WORDS


def run_command(line: str, session: Session, front: FrontEnd) -> None:
    """Run a command line.

    Raises:
        RedrafterError: If there is no such command or it was given something impossible.
        Quit: If the command is to leave.
    """
    name, *rest = line.split(maxsplit=1)
    argument = "".join(rest).strip()
    name = WORDS.get(name, name)
    command = COMMANDS.get(name.lower())
    if command is None:
        near = _nearest(name.lower())
        meant = f"did you mean {near}? " if near else ""
        raise RedrafterError(
            f"There is no command {name}: {meant}/help lists them, and a space in front sends the "
            "line as a question."
        )
    if argument and command.alone:
        raise RedrafterError(
            f"{name} stands alone, so '{argument}' would be for nothing: leave it out, or put a "
            "space in front of the line to send it as a question."
        )
    command.run(session, front, argument)


def _nearest(name: str) -> str | None:
    """The command that was likely meant: one that begins so, or that this begins with."""
    begins = (c for c in COMMANDS if len(name) > 1 and (c.startswith(name) or name.startswith(c)))
    near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=ALIKE)
    return next(begins, near[0] if near else None)


def _help(_session: Session, front: FrontEnd, _argument: str) -> None:
    front.show(views.help_table([(c.usage, c.words) for c in COMMANDS.values()]))


def _reset(session: Session, front: FrontEnd, _argument: str) -> None:
    session.reset()
    front.say("A new conversation; settings and statistics stay.")


def _stats(session: Session, front: FrontEnd, _argument: str) -> None:
    if not session.totals.answers:
        raise RedrafterError("There is nothing to count yet: ask a question first.")
    front.show(views.session_stats(session))


def _costs(session: Session, front: FrontEnd, _argument: str) -> None:
    if session.beam_planner is None:
        raise RedrafterError("Nothing is planned here: a drafter and no beam of one's own need it.")
    front.show(plan_report(session.beam_planner, len(session.cache)))


def _tree(session: Session, front: FrontEnd, _argument: str) -> None:
    if session.last is None:
        raise RedrafterError("There is no draft to show yet: ask a question first.")
    if session.last.step is None:
        raise RedrafterError("Nothing was drafted in the last answer, so it has no tree.")
    front.show(views.draft_tree(session.last.step, session.tokenizer))


def _draft(session: Session, front: FrontEnd, argument: str) -> None:
    if argument == "on" and not session.drafts_if_on:
        raise RedrafterError("There is no drafter to switch on: start with --drafter.")
    changes = _switch(session, "draft", argument)
    front.say(f"Drafting is {'on' if session.drafts else 'off'}{changes}.")


def _copy(session: Session, front: FrontEnd, argument: str) -> None:
    if argument == "on" and not session.facts.copies:
        raise RedrafterError("Copies cannot be verified with this model.")
    changes = _switch(session, "copy", argument)
    front.say(f"Copying from the text is {'on' if session.copies else 'off'}{changes}.")


def _temp(session: Session, front: FrontEnd, argument: str) -> None:
    if argument:
        _choose(session, "temperature", argument)
    front.say(f"Answers are now {session.settings.sampling_words()}.")


def _choose(session: Session, name: str, text: str | None) -> None:
    """Set an option of sampling; None sets its default."""
    value: Any = None if text is None else read_option(SamplingConfig, name, text)
    sampling = replace(session.settings.sampling, **{name: value})
    session.settings = replace(session.settings, sampling=sampling)


def _beam(session: Session, front: FrontEnd, argument: str) -> None:
    if argument == "auto":
        session.settings = replace(
            session.settings, beam_width=None, beam_length=None, node_budget=None
        )
    elif argument:
        width, _, length = argument.partition(" ")
        if not length:
            raise RedrafterError("/beam W L: the length L is missing, as in /beam 4 5.")
        beam = BeamShape(  # which refuses what no answer could be drafted with
            _read(arguments.count(1, arguments.WIDEST_BEAM), width, "/beam W L"),
            _read(arguments.count(1, arguments.LONGEST_BEAM), length.strip(), "/beam W L"),
        )
        session.settings = replace(session.settings, beam_width=beam.width, beam_length=beam.length)
    front.say(f"Drafts: {views.beam_words(session)}.")


def _system(session: Session, front: FrontEnd, argument: str) -> None:
    if argument:
        system = None if argument in ("none", "clear", "off") else argument
        session.settings = replace(session.settings, system=system)
    text = session.settings.system
    front.say(f"System message: {text}" if text else "There is no system message.")


def _max_tokens(session: Session, front: FrontEnd, argument: str) -> None:
    if argument:
        value = _read(arguments.count(1), argument, "/max-tokens N")
        session.settings = replace(session.settings, max_tokens=value)
    front.say(f"Answers are {session.settings.max_tokens:,} tokens long at most.")


def _seed(session: Session, front: FrontEnd, argument: str) -> None:
    if argument:
        _choose(session, "seed", None if argument in ("none", "auto", "off") else argument)
    seed = session.settings.sampling.seed
    front.say("Every answer draws a seed of its own." if seed is None else f"The seed is {seed}.")


def _retry(session: Session, front: FrontEnd, _argument: str) -> None:
    before, answers = session.messages[-1:], session.totals.answers
    show_answer(session, front, session.retry())
    same = session.messages[-1:] == before and session.totals.answers > answers
    if same and not session.settings.sampling.temperature:
        front.say("The same words again, since answers are greedy: /temp X lets others be drawn.")


def _continue(session: Session, front: FrontEnd, _argument: str) -> None:
    show_answer(session, front, session.resume())


def _marks(session: Session, front: FrontEnd, argument: str) -> None:
    changes = _switch(session, "marks", argument)
    front.say(f"Marks are {'on' if session.settings.marks else 'off'}{changes}.")


def _thoughts(session: Session, front: FrontEnd, argument: str) -> None:
    changes = _switch(session, "thoughts", argument)
    front.say(f"Thoughts are {'shown' if session.settings.thoughts else 'folded away'}{changes}.")


def _switch(session: Session, name: str, argument: str) -> str:
    """Set what is on or off as asked; nothing asks for nothing, but how it stands.

    Args:
        session: Whose settings.
        name: Of the setting, and of its command.
        argument: What follows the command's name.

    Returns:
        Words to end the sentence with that says how it stands: how to change it, where nothing
        was asked.
    """
    if argument not in ("on", "off", ""):
        raise RedrafterError(f"/{name} takes 'on' or 'off', not '{argument}'.")
    if not argument:
        return f": /{name} on|off changes that"
    wanted: Any = argument == "on"
    session.settings = replace(session.settings, **{name: wanted})
    return ""


def _save(session: Session, front: FrontEnd, argument: str) -> None:
    first, *rest = argument.split(maxsplit=1) or [""]
    overwrite = first == OVERWRITE
    path = _path("".join(rest) if overwrite else argument, "/save FILE")
    if not session.messages:
        raise RedrafterError("There is no conversation to save yet: ask a question first.")
    if is_there(path) and path.is_dir():
        raise RedrafterError(f"{path} is a directory: name a file in it.")
    if (
        is_there(path)
        and not overwrite
        and not front.confirm(f"{path} is there already. Replace it?")
    ):
        raise RedrafterError(
            f"{path} is there already and stays: /save {OVERWRITE} FILE replaces a file."
        )
    cut = cut_mark(session.last, session.messages[-1]["content"])
    conversation = Conversation(session.settings.system, session.messages, cut)
    save_conversation(path, session.facts.name, conversation)
    front.say(f"Saved {_messages(session)} to {path}.")


def _load(session: Session, front: FrontEnd, argument: str) -> None:
    path = _path(argument, "/load FILE")
    loaded = load_conversation(path)
    session.settings = replace(session.settings, system=loaded.system)
    session.replace_messages(loaded.messages, loaded.cut)
    told = f"Loaded {_messages(session)} from {path}"
    front.say(f"{told}; the conversation goes on from there." if loaded.messages else f"{told}.")


def _messages(session: Session) -> str:
    number = len(session.messages)
    return f"{number:,} message" + ("" if number == 1 else "s")


def _compare(session: Session, front: FrontEnd, _argument: str) -> None:
    try:
        plan(session, front, wanted=session.drafts_if_on and bool(session.messages))
        with front.busy("Answering the last question plain and drafted ..."):
            result = session.compare()
    except KeyboardInterrupt:
        front.say("Stopped comparing.")
        return
    front.show(views.comparison(result))


def _quit(_session: Session, _front: FrontEnd, _argument: str) -> None:
    raise Quit


def _read(reader: Callable[[str], Number], text: str, usage: str) -> Number:
    try:
        return reader(text)
    except argparse.ArgumentTypeError as error:
        raise RedrafterError(f"{usage}: {error}.") from None


def _path(argument: str, usage: str) -> Path:
    if not argument:
        raise RedrafterError(f"{usage} needs the name of a file.")
    return local_path(argument)


COMMANDS: dict[str, Command] = {
    "/help": Command("/help", "this list", _help),
    "/reset": Command("/reset", "forget the conversation and start anew", _reset),
    "/retry": Command("/retry", "answer the last question again; other words need /temp X", _retry),
    "/continue": Command("/continue", "go on with an answer that was cut or stopped", _continue),
    "/stats": Command("/stats", "speeds and acceptance over this session", _stats),
    "/costs": Command("/costs", "what the planner measured, and what it expects", _costs),
    "/tree": Command("/tree", "the last draft tree and the path that was accepted", _tree),
    "/compare": Command("/compare", "answer the last question plain and drafted", _compare),
    "/draft": Command("/draft on|off", "use the drafter, or decode plainly", _draft),
    "/copy": Command("/copy on|off", "draft copies of the text, or do not", _copy),
    "/beam": Command("/beam W L|auto", "draft W beams of L tokens; auto: as planned", _beam),
    "/temp": Command("/temp X", "sampling temperature; 0 takes the likeliest token", _temp),
    "/seed": Command("/seed N|none", "name the samples; none: each answer draws its own", _seed),
    "/max-tokens": Command("/max-tokens N", "longest answer", _max_tokens),
    "/system": Command("/system TEXT|none", "instruction above the conversation", _system),
    "/thoughts": Command("/thoughts on|off", "show a reasoning model's thoughts", _thoughts),
    "/marks": Command("/marks on|off", "show which tokens were guessed", _marks),
    "/save": Command("/save FILE", "write the conversation as JSON", _save),
    "/load": Command("/load FILE", "go on from a saved conversation", _load),
    "/quit": Command("/quit", "leave, as q, quit, exit and Ctrl-D do", _quit),
}
