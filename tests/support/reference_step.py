"""The algorithm in plain code: draft, verify, choose, accept, commit.

No caches, no planner, no overlap, nothing lazy, and a draft is any function. It is what the tests
compare the real loop with, and the first thing to read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn

from mlx_redrafter.noise import noise_rows
from mlx_redrafter.sampling import SamplingConfig, scores

# From the text so far, its last token included, to a tree: tokens and parents, the root (that last
# token, parent -1) first, and every parent before its children.
Draft = Callable[[list[int]], tuple[list[int], list[int]]]


def reference_text(
    model: nn.Module, prompt: Sequence[int], count: int, draft: Draft, sampling: SamplingConfig
) -> tuple[list[int], list[int]]:
    """``count`` tokens after a prompt, and how many of them each step made."""
    text, made = [*prompt], []
    while sum(made) < count:
        tokens, parents = draft(text)  # 1 draft
        rows = verify(model, text, tokens, parents)  # 2 verify
        choices = choose(rows, text, parents, sampling)  # 3 choose
        path = accept(tokens, parents, choices)  # 4 accept
        new = [choices[node] for node in path][: count - sum(made)]
        text, made = text + new, [*made, len(new)]  # 5 commit
    return text[len(prompt) :], made


def path_to(node: int, parents: Sequence[int]) -> list[int]:
    """The nodes from the root down to one."""
    return [] if node < 0 else [*path_to(parents[node], parents), node]


def verify(
    model: nn.Module, text: list[int], tokens: list[int], parents: list[int]
) -> list[mx.array]:
    """Logits after each node, each from a forward of its own over the text that leads to it."""
    rows = []
    for node in range(len(tokens)):
        line = [tokens[one] for one in path_to(node, parents)]  # the root is the text's last token
        rows.append(model(mx.array([text[:-1] + line]))[0, -1])
    return rows


def choose(
    rows: list[mx.array], text: list[int], parents: list[int], sampling: SamplingConfig
) -> list[int]:
    """After each node, the argmax of log-probabilities at temperature plus the position's noise."""
    choices = []
    for node, logits in enumerate(rows):
        position = len(text) - 1 + len(path_to(node, parents))  # of the token that is chosen
        noise = None
        if sampling.temperature:
            noise = noise_rows(sampling.seed, position, 1, logits.shape[-1])[0]
        choices.append(int(mx.argmax(scores(sampling, logits, noise)).item()))
    return choices


def accept(tokens: list[int], parents: list[int], choices: list[int]) -> list[int]:
    """From the root, the child whose token is the choice, as far as there is one."""
    path = [0]
    while True:
        children = [node for node, parent in enumerate(parents) if parent == path[-1]]
        right = [node for node in children if tokens[node] == choices[path[-1]]]
        if not right:
            return path
        path.append(right[0])
