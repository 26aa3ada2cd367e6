"""What copies of the text would yield on a machine's cost curve, replayed over a model's answers.

    python experiments/copies_replay.py --model MODEL [--texts FILE] [--count 5] [--max-tokens 112]
    python experiments/copies_replay.py --texts FILE --shares

The model answers the tasks of experiments/copies.py plainly, once; the answers are kept in FILE.
Then each is gone through as a decoder without a draft head would: propose, price, verify, accept,
learn. Greedy answers do not depend on what is drafted, so tokens a step are exact; speed is counted
in plain steps by the cost curves below, not timed, and leaves out what plain steps gain by
overlapping. With --remember a task's earlier answers are copied from too. With --shares it is
counted how often copied tokens are right, as the prior of CopyAcceptance has it. FILE has a JSON
object a line: "kind", and token ids "prompt", "text" and "ends".
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from copies import ALL_TASKS, prompts_of
from interleaved import ROOT, run_script
from rich.console import Console
from rich.table import Table

from mlx_redrafter import batch_generate, load
from mlx_redrafter.drafting.copies import TextCopies
from mlx_redrafter.drafting.copy_acceptance import LENGTHS, CopyAcceptance, place
from mlx_redrafter.drafting.earlier_answers import EarlierAnswers
from mlx_redrafter.engine.copying import Candidates, SequenceCopies
from mlx_redrafter.planning.copy_planner import CopyPlanner
from mlx_redrafter.planning.costs import interpolated
from mlx_redrafter.tree import accept

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
# Plain steps that a forward over so many rows costs.
CURVES = {
    "float32 on two CPU cores": (1.0, 1.1, 1.2, 1.29, 1.36, 1.43, 1.55, 1.66, 2.05, 2.47, 3.4),
    "flat": (1.0,) * len(SIZES),
    "a row costs half a step": tuple(1 + (size - 1) / 2 for size in SIZES),
}
FORGET = 0.995


@dataclass
class Prices:
    """A cost curve, and the rate at which tokens are made."""

    curve: Sequence[float]
    made: float = 0.0
    taken: float = 0.0
    sizes: Sequence[int] = SIZES

    @property
    def rate(self) -> float:
        return self.made / self.taken if self.taken else 1.0

    def plain_seconds(self, context: int) -> float:
        return 1.0

    def apart_seconds(self, context: int) -> float:
        return 0.0

    def check_seconds(self, rows: int, context: int) -> float:
        return interpolated(rows, self.sizes, self.curve)

    def draft_seconds(self, shape: Any) -> float:
        return 0.0

    def guessed(self, shape: Any) -> float:
        return 0.0

    def observe(self, tokens: int, seconds: float) -> None:
        self.made, self.taken = FORGET * self.made + tokens, FORGET * self.taken + seconds


def replay(
    answers: Sequence[dict[str, Any]], curve: Sequence[float], *, remember: bool
) -> tuple[float, float]:
    """Tokens a step, and speed over plain decoding."""
    prices, acceptance = Prices(curve), CopyAcceptance()
    earlier = EarlierAnswers() if remember else None
    planner = CopyPlanner(lambda: prices)
    steps = tokens = 0
    seconds = 0.0
    for answer in answers:
        ends, text = frozenset(answer["ends"]), answer["text"]
        source = TextCopies(ends=ends, answers=earlier)
        copies = SequenceCopies(source, acceptance)
        copies.begin([*answer["prompt"], text[0]])
        at = 1
        while at < len(text):
            made, cost = step(copies, planner, prices, text, at)
            copies.accepted(text[at : at + made])
            prices.observe(made, cost)
            at, steps, tokens, seconds = at + made, steps + 1, tokens + made, seconds + cost
        source.end(text)
    return tokens / steps, tokens / seconds


def step(
    copies: SequenceCopies, planner: CopyPlanner, prices: Prices, text: Sequence[int], at: int
) -> tuple[int, float]:
    """Tokens that the step after ``at`` tokens makes, and its cost in plain steps."""
    proposal = copies.propose(min(32, len(text) - at - 1))
    if proposal is None:
        return 1, 1.0
    candidates = Candidates(text[at - 1], None, [1.0], proposal)
    count = planner.num_nodes(candidates.chances, at)
    if not count:
        return 1, 1.0
    tree = candidates.first(count).tree
    choices = [text[min(at + depth, len(text) - 1)] for depth in tree.depths]
    made = len(accept(tree.tokens, tree.parents, choices))
    return min(made, len(text) - at), prices.check_seconds(1 + count, at)


def shares(answers: Sequence[dict[str, Any]]) -> Table:
    """Right tokens among copied ones, in the rows and columns of ``copy_acceptance.PRIOR``."""
    counts: dict[tuple[int, int], list[bool]] = {}
    earlier = EarlierAnswers()
    for answer in answers:
        ends, text = frozenset(answer["ends"]), answer["text"]
        source = TextCopies(ends=ends, answers=earlier)
        source.follow(answer["prompt"])
        for at, token in enumerate(text):
            copies = source.propose()
            for rank, chain in enumerate(copies.continuations if copies else ()):
                for depth, (copied, wanted) in enumerate(
                    zip(chain.tokens, text[at:], strict=False)
                ):
                    counts.setdefault(place(copies, rank, depth), []).append(copied == wanted)
                    if copied != wanted:
                        break
            source.accepted([token])
        source.end(text)
    grid = Table("", *(f"{length}" for length in LENGTHS), "more", title="share (count)")
    kinds = ("shared", "once", "often", "other", "deeper")
    for row, name in enumerate((*kinds, *(f"{kind}, earlier answer" for kind in kinds))):
        cells = (counts.get((row, column), []) for column in range(len(LENGTHS) + 1))
        grid.add_row(name, *(f"{sum(c) / len(c):.2f} ({len(c)})" if c else "" for c in cells))
    return grid


def answers_of(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The model's answers, from the file where there is one."""
    if args.texts is not None and args.texts.exists():
        return [json.loads(line) for line in args.texts.read_text("utf-8").splitlines()]
    model, tokenizer = load(args.model, drafter=False, plan=False)
    answers = []
    for task in ALL_TASKS:
        prompts = [
            tokenizer.apply_chat_template(messages, add_generation_prompt=True)
            for messages in prompts_of(task, args.count)
        ]
        made = batch_generate(model, tokenizer, prompts, max_tokens=args.max_tokens, draft=False)
        answers += [
            {"kind": task, "prompt": prompt, "text": text, "ends": sorted(tokenizer.eos_token_ids)}
            for prompt, text in zip(prompts, made.token_ids, strict=True)
        ]
    if args.texts is not None:
        args.texts.write_text("".join(json.dumps(answer) + "\n" for answer in answers), "utf-8")
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(ROOT / "models/pocket"))
    parser.add_argument("--texts", type=Path, default=None, help="where answers are kept")
    parser.add_argument("--count", type=int, default=5, help="prompts a task (default 5)")
    parser.add_argument("--max-tokens", type=int, default=112)
    parser.add_argument("--remember", action="store_true", help="copy from earlier answers too")
    parser.add_argument("--shares", action="store_true", help="how often copies are right")
    args = parser.parse_args()
    answers = answers_of(args)
    if args.shares:
        Console().print(shares(answers))
        return
    grid = Table(title=f"{args.model}: tokens a step, and speed over plain", title_justify="left")
    for name in ("task", "tokens", *CURVES):
        grid.add_column(name, justify="left" if name == "task" else "right")
    for task in dict.fromkeys(answer["kind"] for answer in answers):
        own = [answer for answer in answers if answer["kind"] == task and len(answer["text"]) > 1]
        made = [replay(own, curve, remember=args.remember) for curve in CURVES.values()]
        cells = (f"{tokens:.2f}, {speed:.2f} x" for tokens, speed in made)
        grid.add_row(task, str(sum(len(answer["text"]) for answer in own)), *cells)
    Console().print(grid)


if __name__ == "__main__":
    run_script(main)
