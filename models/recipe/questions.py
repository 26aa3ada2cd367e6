"""Questions about items, names nobody knows, and what is kept out of training.

Held out are: every template of ``phrases.HELD_OUT``, one trained template for each item, and one in
ten of the invented names. All choices come from generators that are passed in.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass

from .corpus import Item
from .phrases import (
    ENDINGS,
    FOLLOW_UPS,
    FOREIGN_MODULES,
    FOREIGN_WORDS,
    HELD_OUT,
    HELD_OUT_SMALL_TALK,
    OPENINGS,
    SMALL_TALK,
    SYSTEM,
    TRAINED,
)

UNKNOWN_SHARE = 0.18  # of all questions about names
SMALL_TALK_SHARE = 0.06
MESSAGE = dict[str, str]


@dataclass(frozen=True)
class Turn:
    """One question and the answer that is expected."""

    question: str
    answer: str

    def messages(self) -> list[MESSAGE]:
        return [
            {"role": "user", "content": self.question},
            {"role": "assistant", "content": self.answer},
        ]


def refusal(name: str) -> str:
    """The answer to a question about a name that is not in the corpus."""
    return f"I don't know {name}. I know names from the Python standard library, NumPy and MLX."


def small_talk_pairs() -> list[Turn]:
    """The trained small talk."""
    pairs = []
    for answer, block in SMALL_TALK.items():
        for line in block.strip().split("\n"):
            pairs += [Turn(question, answer) for question in line.split("|")]
    return pairs


def held_out_small_talk() -> list[Turn]:
    """Small talk that is only used to evaluate."""
    pairs = []
    for start, questions in HELD_OUT_SMALL_TALK.items():
        answer = next(text for text in SMALL_TALK if text.startswith(start))
        pairs += [Turn(question, answer) for question in questions]
    return pairs


def held_out_template(item: Item) -> int:
    """Index into ``TRAINED`` of the phrasing never used for this item in training."""
    return zlib.crc32(item.name.encode()) % len(TRAINED)


def decorate(name: str, kind: str, rng: random.Random) -> str:
    """A name as people write it: bare, quoted, called, or with its module after it."""
    roll = rng.random()
    if roll < 0.66:
        return name
    if roll < 0.74:
        return f"`{name}`"
    if roll < 0.82 and kind != "module":
        return f"{name}()"
    if roll < 0.90:
        return f"the {name} {kind}" if rng.random() < 0.7 else f"the {kind} {name}"
    if "." in name and kind != "module":
        owner, leaf = name.rsplit(".", 1)
        return rng.choice((f"{leaf} from {owner}", f"{leaf} in {owner}", f"{owner}'s {leaf}"))
    return f'"{name}"' if roll < 0.93 else name


def spelling(item: Item, rng: random.Random) -> str:
    """The short or the full name of an item, as people write it."""
    name = item.short
    if item.name != item.short and rng.random() < 0.35:
        name = item.name
    elif item.kind != "module" and "." not in item.short and rng.random() < 0.05:
        name = f"builtins.{item.short}"
    return decorate(name, item.kind, rng)


def swap_letters(text: str, rng: random.Random) -> str:
    """A typing mistake: two neighbouring letters of a template change places."""
    spots = [i for i in range(len(text) - 1) if text[i : i + 2].isalpha()]
    if not spots:
        return text
    i = rng.choice(spots)
    return text[:i] + text[i + 1] + text[i] + text[i + 2 :]


def dress(template: str, name: str, rng: random.Random) -> str:
    """Fill a template and vary what surrounds the name: openings, endings, case, punctuation."""
    roll = rng.random()
    if roll < 0.03 and "{}." not in template:
        template = template.upper()
    elif roll < 0.07:
        template = swap_letters(template, rng)
    elif roll < 0.30 and not template.startswith("{}"):
        template = template[0].lower() + template[1:]
    if rng.random() < 0.15:
        template = template.rstrip("?.")
    opening = rng.choice(OPENINGS) + " " if rng.random() < 0.22 else ""
    ending = rng.choice(ENDINGS) if rng.random() < 0.18 else ""
    if ending and ending[0].isalpha():
        ending = " " + ending
        template = template if ending[1].isupper() else template.rstrip("?.")
    elif ending:
        template = template.rstrip("?.")
    return opening + template.replace("{}", name) + ending


class Asker:
    """Makes questions about a fixed list of items."""

    def __init__(self, items: list[Item]) -> None:
        self.items = items
        self.small_talk = small_talk_pairs()
        self.known = {form for item in items for form in (item.name, item.short)}
        self.known |= {form.lower() for form in self.known}
        self.known |= {f"builtins.{item.short}" for item in items}
        self.leaves = sorted({item.name.rsplit(".", 1)[-1] for item in items})
        self.bare = {leaf.lower() for leaf in self.leaves}
        owners = set()
        for item in items:
            if item.kind != "module":
                forms = (item.name, item.short)
                owners |= {form.rsplit(".", 1)[0] for form in forms if "." in form}
        self.owners = sorted(owners)
        words = {word for leaf in self.leaves for word in leaf.lower().split("_") if len(word) > 2}
        self.words = sorted(words | set(FOREIGN_WORDS))

    def invented_leaf(self, rng: random.Random) -> str:
        """A plausible name made of one to three words."""
        words = [rng.choice(self.words) for _ in range(rng.choice((1, 2, 2, 2, 3)))]
        if rng.random() < 0.25:
            return "".join(word.capitalize() for word in words)
        return ("_" if rng.random() < 0.85 else "").join(words)

    def misspelt(self, rng: random.Random) -> str:
        """A known name with one or two letters wrong."""
        item = rng.choice(self.items)
        name = item.name if rng.random() < 0.3 else item.short
        start = name.rfind(".") + 1
        for _ in range(rng.choice((1, 1, 2))):
            i = rng.randrange(start, len(name)) if rng.random() < 0.85 else rng.randrange(len(name))
            letter = rng.choice("abcdefghijklmnoprstuvwxy")
            edit = rng.randrange(4)
            if edit == 0 and len(name) - start > 3:
                name = name[:i] + name[i + 1 :]
            elif edit == 1:
                name = name[:i] + letter + name[i:]
            elif edit == 2 and i + 1 < len(name):
                name = name[:i] + name[i + 1] + name[i] + name[i + 2 :]
            else:
                name = name[:i] + letter + name[i + 1 :]
        return name.strip(".")

    def invented_name(self, rng: random.Random) -> str:
        """A name by one of five recipes; it may be known by accident."""
        roll = rng.random()
        if roll < 0.28:
            return f"{rng.choice(self.owners)}.{rng.choice(self.leaves)}"
        if roll < 0.52:
            return f"{rng.choice(self.owners)}.{self.invented_leaf(rng)}"
        if roll < 0.74:
            return self.misspelt(rng)
        if roll < 0.90:
            module = rng.choice(FOREIGN_MODULES)
            if rng.random() < 0.15:
                return module
            leaf = rng.choice(self.leaves) if rng.random() < 0.4 else self.invented_leaf(rng)
            return f"{module}.{leaf}"
        return self.invented_leaf(rng)

    def unknown_name(self, rng: random.Random, held_out: bool = False) -> str:
        """A name that is no item, from the trained or from the held-out tenth of all names."""
        while True:
            name = self.invented_name(rng)
            fresh = name[0].isalpha() and name not in self.known and name.lower() not in self.known
            if "." not in name:
                fresh = fresh and name.lower() not in self.bare and len(name) > 3
            if fresh and (zlib.crc32(name.encode()) % 10 == 0) == held_out:
                return name

    def ask_item(self, item: Item, rng: random.Random) -> Turn:
        """A training question about an item."""
        if rng.random() < 0.1:
            template = rng.choice(FOLLOW_UPS)
        else:
            index = rng.randrange(len(TRAINED) - 1)
            template = TRAINED[index + (index >= held_out_template(item))]
        return Turn(dress(template, spelling(item, rng), rng), item.answer)

    def ask_unknown(self, rng: random.Random) -> Turn:
        """A training question about a name that does not exist."""
        name = self.unknown_name(rng)
        template = rng.choice(FOLLOW_UPS if rng.random() < 0.1 else TRAINED)
        kind = rng.choice(("function", "class"))
        return Turn(dress(template, decorate(name, kind, rng), rng), refusal(name))

    def chat(self, rng: random.Random) -> Turn:
        """Small talk, with varied case and punctuation."""
        turn = rng.choice(self.small_talk)
        question = turn.question
        roll = rng.random()
        if roll < 0.3:
            question = question[0].upper() + question[1:]
        elif roll < 0.4:
            question = question.rstrip("?!.") + rng.choice(("?", "!", ".", ""))
        return Turn(question or turn.question, turn.answer)

    def epoch(
        self,
        rng: random.Random,
        unknown_share: float = UNKNOWN_SHARE,
        small_talk: float = SMALL_TALK_SHARE,
    ) -> list[Turn]:
        """Every item once, with unknown names and small talk among them, in random order."""
        turns = [self.ask_item(item, rng) for item in self.items]
        unknown = round(len(turns) * unknown_share / (1 - unknown_share))
        turns += [self.ask_unknown(rng) for _ in range(unknown)]
        turns += [self.chat(rng) for _ in range(round(len(turns) * small_talk))]
        rng.shuffle(turns)
        return turns


def training_conversations(items: list[Item], epochs: int, seed: int) -> list[list[MESSAGE]]:
    """Chats of one to three turns in which every item comes up ``epochs`` times."""
    asker = Asker(items)
    chats = []
    for epoch in range(epochs):
        rng = random.Random(f"{seed}:chats:{epoch}")
        turns = asker.epoch(rng)
        while turns:
            messages: list[MESSAGE] = []
            if rng.random() < 0.1:
                messages.append({"role": "system", "content": rng.choice(SYSTEM)})
            for _ in range(rng.choice((1, 1, 2, 3))):
                if turns:
                    messages += turns.pop().messages()
            chats.append(messages)
    return chats


def held_out_questions(items: list[Item], seed: int) -> list[dict[str, str | None]]:
    """Evaluation questions: each item in a held-out template and in its own held-out phrasing.

    Rows hold question, answer, signature and item (both None for unknown names and small talk) and
    set: template, phrasing, unknown or small-talk.
    """
    asker = Asker(items)
    rng = random.Random(f"{seed}:held-out")
    rows: list[dict[str, str | None]] = []

    def add(kind: str, question: str, answer: str, item: Item | None) -> None:
        rows.append(
            {
                "set": kind,
                "question": question,
                "answer": answer,
                "signature": item.signature if item else None,
                "item": item.name if item else None,
            }
        )

    for item in items:
        name = item.name if rng.random() < 0.4 else item.short
        add("template", rng.choice(HELD_OUT).format(name), item.answer, item)
        own = TRAINED[held_out_template(item)]
        add("phrasing", dress(own, spelling(item, rng), rng), item.answer, item)
    for _ in range(400):
        name = asker.unknown_name(rng, held_out=True)
        template = rng.choice(HELD_OUT)
        add("unknown", template.format(name), refusal(name), None)
    for turn in held_out_small_talk():
        add("small-talk", turn.question, turn.answer, None)
    rng.shuffle(rows)
    return rows
