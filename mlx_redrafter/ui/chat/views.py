"""Header, tables and trees, as things that Rich can draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.text import Text
from rich.tree import Tree

from ...system.visible import visible, visible_line
from ...text.tokenizers import token_text
from ..cli.plan_view import shape_words, verdict
from ..fitting import Fields, Figures, FirstThatFits
from ..theme import COPIED, GUESSED, OWN
from .answer import Comparison
from .session import Session
from .status import UNMEASURED, baseline_words, times

if TYPE_CHECKING:
    from ...engine.step import StepRecord

BAR_WIDTH = 12
# What fits below the figures on a screen of 24 lines.
DEPTHS = 8
EIGHTHS = " ▏▎▍▌▋▊▉"


def header(session: Session) -> RenderableType:
    """Who is talking, on what, and how the text is coloured."""
    facts, settings = session.facts, session.settings
    rows: list[tuple[str, str | Text]] = [("model", Text(visible_line(facts.name), "chat.name"))]
    if facts.purpose is not None:
        rows.append(("", visible_line(facts.purpose)))
    answers = f"{settings.sampling_words()}, {settings.max_tokens:,} tokens at most"
    rows += [
        ("drafter", drafter_words(session)),
        ("device", f"{facts.device}, {facts.precision}"),
        ("answers", answers),
    ]
    if session.drafts and (session.baseline is not None or session.beam_planner is None):
        rows.append(("speed", baseline_words(session.baseline)))
    fields = Fields(rows, "chat.label")
    panel = Panel(fields, title="mlx-redrafter", border_style="chat.border", title_align="left")
    marks = [legend(session)] if session.drafts and settings.marks else []
    foot = Text().append("/help", "chat.name").append(" lists the commands, ")
    return Group(panel, *marks, foot.append("q", "chat.name").append(" or Ctrl-D leaves"))


def drafter_words(session: Session) -> str:
    """The drafter, its beam, and whether it is used."""
    if session.facts.drafter is None:
        copies = "the text itself is copied where it repeats"
        return f"none; {copies}" if session.copies else "none, so decoding is plain"
    if not session.settings.draft:
        return f"{session.facts.drafter} (off: /draft on)"
    return f"{session.facts.drafter}, {beam_words(session)}"


def beam_words(session: Session) -> str:
    """Beam width and length, and the node budget if there is one; or that it is planned."""
    if session.model.drafter is None:
        return "no beams, since there is no drafter"
    if session.plans_beams:
        planner = session.beam_planner if session.totals.answers else None
        now = f" (now {shape_words(planner.choice)})" if planner is not None else ""
        return f"beam planned by measurement{now}"
    width, length = session.beam
    budget = session.settings.node_budget
    return f"beam {width} × {length}" + (f", at most {budget} nodes" if budget else "")


def legend(session: Session) -> Text:
    """What the styles of an answer mean."""
    guessed, copied = [GUESSED] * session.guesses, [COPIED] * session.copies
    text = Text()
    for style, words in (*guessed, *copied, OWN):
        text.append(" · " if text else "").append(words, style)
    return text


def bar(share: float) -> str:
    """A horizontal bar for a share from 0 to 1, of ``BAR_WIDTH`` cells where it is all."""
    eighths = round(min(1.0, max(0.0, share)) * BAR_WIDTH * 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (EIGHTHS[rest] if rest else "")


def session_stats(session: Session) -> RenderableType:
    """The session's counts and what was accepted at each depth; it fits 24 lines of 40 columns."""
    parts: list[RenderableType] = [Text("session", "chat.name"), _counts(session)]
    drafting = session.totals.drafting
    if drafting.steps:
        parts.append(_depths(drafting.acceptance_by_depth, drafting.histogram))
    return Group(*parts, *plan_words(session))


def plan_words(session: Session) -> list[RenderableType]:
    """Whether drafting pays, and where the reasons stand."""
    if session.beam_planner is None:
        return []
    said = verdict(session.beam_planner, len(session.cache))
    return [said, Text("/costs shows why", "chat.note")]


def _counts(session: Session) -> RenderableType:
    totals, drafting = session.totals, session.totals.drafting
    tps = totals.tokens / totals.seconds if totals.seconds else 0.0
    plain = f" ({totals.plain_answers:,} plain)" if totals.plain_answers else ""
    rows: list[tuple[str, str | Text]] = [
        ("answers", f"{totals.answers:,}{plain}, {totals.tokens:,} tokens"),
        ("tokens/s", f"{tps:,.1f}"),
        ("plain", _plain_words(session)),
    ]
    if drafting.steps:
        undrafted = drafting.plain_steps if drafting.plain_steps < drafting.steps else 0
        without = f", {undrafted:,} without a draft" if undrafted else ""
        rows += [
            ("steps", f"{drafting.steps:,}{without}"),
            ("tokens per step", f"{drafting.tokens_per_step:.2f}"),
            ("drafted", f"{drafting.drafted:,}, accepted {drafting.accepted:,}"),
        ]
        if drafting.copied:
            # The first token of an answer is no step's; plain answers are the target's own.
            shares = drafting.by_source | {"own": totals.tokens - drafting.accepted}
            words = (f"{shares[name]:,} {name}" for name in ("guessed", "copied", "own"))
            rows.append(("tokens by source", ", ".join(words)))
        seconds = (
            f"about {drafting.draft_seconds:.2f} s drafting, "
            f"{drafting.verify_seconds:.2f} s checking"
        )
        rows.append(("time", seconds))
    return Fields(rows, "chat.label")


def _plain_words(session: Session) -> str:
    context, planner = len(session.cache), session.beam_planner
    if planner is not None:
        measured = planner.plain_speed(context)
        if measured is None:
            return "not known before a few plain steps"
        return f"{measured:,.1f} at {context:,} tokens of context, by plain steps"
    baseline = session.baseline
    if baseline is None:
        return UNMEASURED
    return f"{baseline.tps:,.1f} at {baseline.context:,} tokens of context"


def _depths(shares: Sequence[float], histogram: Sequence[int]) -> RenderableType:
    """For each depth the share accepted there, and how many steps accepted just so many."""
    title, label = "accepted at each depth", "chat.label"
    drawn = Figures("depth", "", "share", "steps", title=title, title_style=label, box=None)
    narrow = Figures("depth", "share", "steps", title=title, title_style=label, box=None)
    for depth in range(min(len(histogram), DEPTHS + 1)):
        share = shares[depth - 1] if 0 < depth <= len(shares) else None
        steps = histogram[depth] if depth < DEPTHS else sum(histogram[depth:])
        more = "+" if depth == DEPTHS < len(histogram) - 1 else ""
        length, part = ("", "") if share is None else (bar(share), f"{share:.0%}")
        name, times = Text(f"{depth}{more}", label), f"{steps:,}"
        drawn.add_row(name, Text(length.ljust(BAR_WIDTH), "status.bar"), part, times)
        narrow.add_row(name, part, times)
    return FirstThatFits(drawn, narrow)


def draft_tree(step: StepRecord, tokenizer: Any) -> RenderableType:
    """A draft tree with the path that the target accepted.

    Where the terminal is too narrow for a level a token, tokens that share their fate and have no
    siblings share a line.
    """
    note = (
        f"{step.accepted} of {step.drafted} drafted tokens accepted; numbers are the drafter's "
        "scores of the path down to each token (0 is certain)"
        + (", of copies what was expected of them" if step.copied else "")
    )
    trees = (_grown(step, tokenizer, in_line=in_line) for in_line in (False, True))
    return Group(FirstThatFits(*trees), Text(note, "chat.note"))


def _grown(step: StepRecord, tokenizer: Any, *, in_line: bool) -> Tree:
    """The tree, with a line for each token, or for each run of tokens without siblings."""
    path = set(step.path)
    tree = step.tree
    # After an accepted end of text the model's next choice was not used.
    ends = set(getattr(tokenizer, "eos_token_ids", ()))
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(tree.parents[1:], start=1):
        children.setdefault(parent, []).append(node)

    def label(nodes: list[int]) -> Text:
        names = "".join(token_name(tokenizer, tree.tokens[node]) for node in nodes)
        if nodes == [0]:
            return Text(names, "tree.target").append("  the token before the draft", "chat.note")
        kind = "tree.copied" if nodes[0] in step.copied else "tree.accepted"
        mark, style = ("✓", kind) if nodes[0] in path else (" ", "tree.rejected")
        text = Text().append(f"{mark} {names}", style)
        source = " copied" if nodes[0] in step.copied else ""
        return text.append(f"  {tree.log_probs[nodes[-1]]:.2f}{source}", "chat.note")

    def fate(node: int) -> tuple[bool, bool]:
        return node in step.copied, node in path

    def run(node: int) -> list[int]:
        """A node and those that share its line: long copies always stay on one."""
        nodes = [node]
        while in_line or node in step.copied:
            following = children.get(node, [])
            if len(following) != 1 or fate(following[0]) != fate(node):
                break
            node = following[0]
            nodes.append(node)
        return nodes

    def grow(branch: Tree, node: int) -> None:
        if node == step.path[-1] and tree.tokens[node] not in ends:
            chosen = token_name(tokenizer, step.choices[node])
            branch.add(Text(f"→ {chosen}  supplied by the model", "tree.target"))
        for child in sorted(children.get(node, ()), key=lambda n: -tree.log_probs[n]):
            nodes = run(child)
            grow(branch.add(label(nodes)), nodes[-1])

    root = Tree(label([0]), guide_style="tree.rejected")
    grow(root, 0)
    return root


def token_name(tokenizer: Any, token: int) -> str:
    """A token as it can be shown in one line, its spaces visible."""
    text = token_text(tokenizer, token)
    return visible(text).replace("\n", "↵").replace("\t", "⇥").replace(" ", "␣") or f"<{token}>"


def comparison(result: Comparison) -> RenderableType:
    """Both runs of a question side by side."""
    table = Figures("", "plain", "drafted", box=None, header_style="chat.label")
    plain, runs = result.plain, (result.plain, result.drafted)
    table.add_row("tokens", *(f"{run.tokens:,}" for run in runs))
    table.add_row("steps", *(f"{run.stats.steps:,}" for run in runs))
    table.add_row("tokens/step", *(f"{run.stats.tokens_per_step:.2f}" for run in runs))
    table.add_row("tokens/s", *(f"{run.tps:,.1f}" for run in runs))
    table.add_row("speed", *(times(run.tps / plain.tps if plain.tps else None) for run in runs))
    if result.identical:
        verdict = Text("The two texts are identical.", "status.faster")
    else:
        verdict = Text(
            f"The two texts part after {result.parting:,} characters: at lower precision that can "
            "happen where the two best tokens score within rounding of each other.",
            "status.slower",
        )
    return Group(table, verdict)


def help_table(rows: Sequence[tuple[str, str]]) -> RenderableType:
    """The commands and what they do."""
    alone = Text("Settings alone, such as /marks or /temp, say how they stand.", "chat.note")
    return Group(Fields(rows, "chat.name"), alone)
