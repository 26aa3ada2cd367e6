"""The chat's settings, and how they are told in words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ChatSettings:
    """How answers are made; commands replace it as a whole.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: Share of probability sampled from; 1 is all of it.
        top_k: Number of tokens sampled from; 0 is all of them.
        min_p: Least probability sampled, as a share of the likeliest token's.
        seed: The same seed gives the same words.
        max_tokens: Longest answer.
        system: Instruction above the conversation, None for none.
        draft: Whether the drafter is used.
        beam_width: Beams kept while drafting, None for the library's choice.
        beam_length: Tokens drafted ahead, None for the library's choice.
        node_budget: Drafted tokens checked at once, None for all.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    max_tokens: int = 512
    system: str | None = None
    draft: bool = True
    beam_width: int | None = None
    beam_length: int | None = None
    node_budget: int | None = None

    def sampling_words(self) -> str:
        """'greedy', or the temperature and whatever narrows the choice."""
        if self.temperature == 0:
            return "greedy"
        words = [f"temperature {self.temperature:g}"]
        if 0 < self.top_p < 1:
            words.append(f"top-p {self.top_p:g}")
        if self.top_k:
            words.append(f"top-k {self.top_k}")
        if self.min_p:
            words.append(f"min-p {self.min_p:g}")
        return ", ".join([*words, f"seed {self.seed}"])
