"""What a conversion tells its caller: progress while it runs, a report when it is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the bytes done so far and the bytes in all."""


def silent(stage: str, done: int, total: int) -> None:
    """The progress callback that shows nothing."""


@dataclass(frozen=True)
class PartReport:
    """One converted part, the target or the drafter.

    Attributes:
        name: Hub repository or directory or file name it came from.
        bytes_before: Size of the tensors as read.
        bytes_after: Size of the tensors as written.
        parameters: Number of weights, quantised ones counted one by one.
        quantization: mlx-lm's quantisation entry, None where nothing is quantised.
        full_precision: Layers that could be quantised but were left as they are because the group
            size does not divide their input dimension.
    """

    name: str
    bytes_before: int
    bytes_after: int
    parameters: int
    quantization: dict[str, Any] | None = None
    full_precision: tuple[str, ...] = ()

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight, scales and biases of the groups included."""
        return 8 * self.bytes_after / max(self.parameters, 1)


@dataclass(frozen=True)
class CheckReport:
    """What ``check=True`` measured on the written bundle.

    Attributes:
        prompts: Number of prompts decoded.
        tokens: Tokens decoded plainly over all prompts.
        target_matches: Whether the bundle's next-token scores are bit for bit those of mlx-lm's own
            conversion of the same checkpoint; None where there was no checkpoint to compare with.
        target_difference: Largest absolute difference between the two, in logits; NaN where one of
            them computes NaN.
        draft_matches: Share of prompts whose drafted text has the same tokens as the plain text;
            None without a drafter.
        tokens_per_step: Tokens written per target forward when drafting; None without a drafter.
        drafter_agreement: Share of positions where the quantised drafter's likeliest token is the
            unquantised one's; None where the drafter was not quantised here.
        drafter_positions: Number of positions compared.
        failure: Why the bundle could not be decoded, or that its target computes no numbers in
            its own precision; None if all went well.
    """

    prompts: int
    tokens: int
    target_matches: bool | None = None
    target_difference: float | None = None
    draft_matches: float | None = None
    tokens_per_step: float | None = None
    drafter_agreement: float | None = None
    drafter_positions: int = 0
    failure: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the bundle decodes, and its target is mlx-lm's."""
        return self.failure is None and self.target_matches is not False


@dataclass(frozen=True)
class ConversionReport:
    """What was written, and where.

    Attributes:
        path: The bundle.
        target: The target's part, None where only a drafter was added.
        drafter: The drafter's part, None where there was none.
        notes: Sentences on what was left out or inferred.
        check: The check's findings, None where none was asked for.
        uploaded: The Hub repository it was uploaded to.
    """

    path: Path
    target: PartReport | None
    drafter: PartReport | None
    notes: tuple[str, ...] = ()
    check: CheckReport | None = None
    uploaded: str | None = None
