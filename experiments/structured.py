"""Answers that follow a JSON schema, plain and with planned drafts by turns.

    python experiments/structured.py --model smollm2

People are to be put down as name, age, drinks and a summary. The planner begins afresh at each
temperature, and every text is compared with plain decoding's. An answer may be copied from those
to the people before, as where one program asks for all of them; with --apart it is not.
"""

from __future__ import annotations

import argparse
from typing import Any

import mlx_redrafter  # isort: skip  # noqa: F401  (loads OpenBLAS before mlx)
from interleaved import run_script
from planned import Subject, beside_plain, by_turns, plain, planned, table
from rich.console import Console

PEOPLE = (
    "Bob Miller is 34 years old and likes tea and coffee.",
    "Ann, who is 61, drinks nothing but water.",
    "Carl Gustav (19) from Uppsala drinks juice, milk and cocoa.",
    "Nobody knows how old Ms. Oduya is, 45 perhaps. She has a glass of wine now and then.",
    "Li Wei turned 28 last week, and celebrated it with lemonade and green tea.",
    "At 72, Henrik Olsen still drinks four cups of black coffee a day, and a beer on Sundays.",
)
ASKED = " Give the data as JSON with name, age, drinks and a summary."
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 60},
        "age": {"type": "integer", "minimum": 0, "maximum": 200},
        "drinks": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 4},
        "summary": {"type": "string", "maxLength": 200},
    },
    "required": ["name", "age", "drinks", "summary"],
    "additionalProperties": False,
}


def main() -> None:
    """Compare and print."""
    flags = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    flags.add_argument("--model", default="smollm2")
    flags.add_argument("--drafter", default=None)
    flags.add_argument("--temps", type=float, nargs="+", default=[0.0, 1.0])
    flags.add_argument("--apart", action="store_true", help="copy from no earlier answer")
    args = flags.parse_args()
    subject = Subject.load(args.model, args.drafter)
    prompts = [subject.prompt(person + ASKED) for person in PEOPLE]
    for temperature in args.temps:
        ways = {"plain": plain, "planned": planned(subject.planner())}
        options = {"max_tokens": 120, "temperature": temperature, "json_schema": SCHEMA}
        options["remember"] = not args.apart
        result = beside_plain(by_turns(subject, prompts, ways, **options))
        Console().print(table(f"{subject.model.name}, temperature {temperature:g}", result))


if __name__ == "__main__":
    run_script(main)
