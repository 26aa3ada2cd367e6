"""The comparison of contestants as a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..engine.model import SpeculativeModel
from .agreement import Agreement, compare
from .contestants import PLAIN, Contestant, Task
from .environment import Environment
from .measuring import Result, Round, summarise, turn_order
from .prompts import Prompt
from .writing import FORMAT


@dataclass(frozen=True)
class Comparison:
    """Contestants compared.

    Attributes:
        environment: Where.
        settings: What was asked for, ready for JSON.
        results: One a contestant.
        agreements: How each other contestant's texts compare with plain decoding's, by name.
        prompts: What was answered.
        rounds: Every answer.
    """

    environment: Environment
    settings: Mapping[str, Any]
    results: Sequence[Result]
    agreements: Mapping[str, Agreement]
    prompts: Sequence[Prompt]
    rounds: Sequence[Round]

    @property
    def temperature(self) -> float:
        """The sampling temperature."""
        return float(self.settings["sampling"]["temperature"])

    def best(self, names: Sequence[str]) -> Result | None:
        """The fastest of some contestants, None of none."""
        found = [result for result in self.results if result.name in names]
        return max(found, key=lambda result: result.tokens_per_second.median, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: the results, and every answer's times."""
        return {
            "format": FORMAT,
            "kind": "run",
            "environment": self.environment.to_dict(),
            "settings": dict(self.settings),
            "contestants": [
                {
                    **result.to_dict(),
                    "agreement_with_plain": agreement.to_dict() if agreement else None,
                }
                for result in self.results
                for agreement in [self.agreements.get(result.name)]
            ],
            "answers": self.rows(),
        }

    def rows(self) -> list[dict[str, Any]]:
        """A table of all answers, in the order in which they were given."""
        names = [result.name for result in self.results]
        return [
            _row(repeat, answers, prompt, index, name)
            for repeat, answers in enumerate(self.rounds)
            for index, prompt in enumerate(self.prompts)
            for name in turn_order(names, repeat, index)
        ]


@dataclass(frozen=True)
class Comparisons:
    """Several comparisons of the same contestants, at temperatures of their own."""

    runs: Sequence[Comparison]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"format": FORMAT, "kind": "runs", "runs": [run.to_dict() for run in self.runs]}

    def rows(self) -> list[dict[str, Any]]:
        """A table of all answers, the temperature first."""
        return [{"temperature": run.temperature, **row} for run in self.runs for row in run.rows()]


def _row(repeat: int, answers: Round, prompt: Prompt, index: int, name: str) -> dict[str, Any]:
    answer = answers[name][index]
    stats = answer.stats
    return {
        "repeat": repeat,
        "prompt": prompt.name,
        "category": prompt.category,
        "turn": prompt.turn,
        "contestant": name,
        "prompt_tokens": len(prompt.tokens),
        "tokens": len(answer.tokens),
        "seconds": answer.seconds,
        "first_token_seconds": answer.first_token_seconds,
        "extra_memory_bytes": answer.memory_bytes,
        "steps": stats.steps if stats else None,
        "tokens_per_step": stats.tokens_per_step if stats else None,
    }


def conclude(
    environment: Environment,
    settings: Mapping[str, Any],
    contestants: Sequence[Contestant],
    prompts: Sequence[Prompt],
    rounds: Sequence[Round],
    model: SpeculativeModel,
    task: Task,
) -> Comparison:
    """Draw the conclusions from at least one repeat.

    Args:
        environment: Where it was measured.
        settings: What was asked for, ready for JSON.
        contestants: Among them plain decoding.
        prompts: What was answered.
        rounds: Every answer.
        model: For the scores where texts differ.
        task: What contestants did.
    """
    agreements = {
        contestant.name: compare(contestant, PLAIN, prompts, rounds, model, task.sampling)
        for contestant in contestants
        if contestant.name != PLAIN
    }
    results = summarise(contestants, rounds)
    return Comparison(environment, settings, results, agreements, prompts, rounds)
