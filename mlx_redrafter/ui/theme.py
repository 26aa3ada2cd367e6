"""Colours and marks of the chat."""

from __future__ import annotations

from rich.theme import Theme

# Told apart without colour too: where colours are off, bold and underlines stay, and what the
# drafter guessed, of which there is most, is plain.
THEME = Theme(
    {
        "answer.drafted": "green",
        "answer.copied": "blue underline",
        "answer.target": "bold",
        "answer.plain": "default",
        "answer.thought": "dim italic",
        "chat.prompt": "bold cyan",
        "chat.name": "bold",
        "chat.label": "dim",
        "chat.note": "dim",
        "chat.error": "red",
        "chat.border": "cyan",
        "status": "dim",
        "status.value": "default",
        "status.bar": "green",
        "status.faster": "bold green",
        "status.slower": "yellow",
        "tree.accepted": "bold green",
        "tree.copied": "bold blue",
        "tree.rejected": "dim",
        "tree.target": "bold",
    }
)

PROMPT = "> "
CONTINUATION = ". "
CALIBRATING = "Measuring what drafting costs on this machine (once)"
DOES_NOT_PAY = (
    "Drafts have not paid with this model on this machine so far, so decoding is plain, and they "
    "are tried again now and then: /stats says why."
)
MEASURING = "Measuring plain decoding on this machine"
GUESSED = ("answer.drafted", "guessed by the drafter")
COPIED = ("answer.copied", "copied from the text")
OWN = ("answer.target", "supplied by the model")
