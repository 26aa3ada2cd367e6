"""What a run learns from and evaluates on: its data, the target's questions and its answers."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from .data import Record, TokenRow, tokenize
from .held_out import apart, split, tell_left_out
from .options import TrainingOptions
from .record import TrainingCallback
from .regeneration import unlike
from .setting import RunSetting
from .sources import read_data
from .target_texts import AnswerSettings, QuestionSettings, answer_file, question_file

# Of answers to a model's own questions, chunk by chunk: greedy text and drawn text are both met.
ANSWER_TEMPERATURES = (0.0, 0.0, 0.7, 1.0)


def answers_anew(options: TrainingOptions) -> bool:
    """Whether the target's own answers are learned from."""
    return options.regenerate or options.self_questions is not None


def given_records(
    options: TrainingOptions, before: Collection[str], callback: TrainingCallback
) -> tuple[list[Record], list[Record]]:
    """Records to learn from and held out, as far as there are data; see :func:`held_out_before`."""
    if not options.data:
        return [], []
    return read_data(
        options.data,
        held_out=options.held_out,
        max_records=options.max_records,
        answers=not answers_anew(options),
        before=before,
        note=callback.note,
    )


def with_own_questions(
    run: RunSetting, records: list[Record], held: list[Record], before: Collection[str]
) -> tuple[list[Record], list[Record]]:
    """The same and the target's own questions; of these some are held out where nothing else is."""
    options = run.options
    assert options.self_questions is not None
    questions = question_file(
        run.paths.work / "questions.jsonl",
        run.target.model,
        run.tokenizer,
        QuestionSettings(
            options.self_questions, seed=options.seed, batch_size=options.regenerate_batch_size
        ),
        target_sha256=run.target_sha256,
        overwrite=options.overwrite,
        progress=partial(run.callback.stage, "target's questions"),
    )
    if not held:
        return split(questions, options.held_out, "--self-questions", answers=False, before=before)
    return [*records, *apart(questions, held, run.callback.note)], held


def _answered(
    run: RunSetting, records: list[Record], held: list[Record]
) -> tuple[list[Record], list[Record]]:
    """The same with the target's own answers; held-out records come first, so they are fewer."""
    options = run.options
    settings = AnswerSettings(
        max_tokens=options.regenerate_max_tokens,
        temperature=_answer_temperature(options),
        seed=options.seed,
        chunk_size=options.regenerate_batch_size,
        prompt_tokens=options.regenerate_prompt_tokens,
        longest=options.max_seq_length,
    )
    fresh = unlike(
        records,
        held,
        run.tokenizer,
        prompt_tokens=settings.prompt_tokens,
        longest=settings.longest,
    )
    tell_left_out(len(records) - len(fresh), run.callback.note)
    answers = answer_file(
        run.paths.work / "answers.jsonl",
        run.target.model,
        run.tokenizer,
        [*held, *fresh],
        settings,
        target_sha256=run.target_sha256,
        overwrite=options.overwrite,
        progress=partial(run.callback.stage, "target's answers"),
    )
    return answers[len(held) :], answers[: len(held)]


def _answer_temperature(options: TrainingOptions) -> float | list[float]:
    """As asked; to a model's own questions by default greedy answers and drawn ones, in turn."""
    if options.self_questions is None or options.regenerate_temperature:
        return options.regenerate_temperature
    return list(ANSWER_TEMPERATURES)


def rows_of(
    run: RunSetting, records: list[Record], held: list[Record]
) -> tuple[list[TokenRow], list[TokenRow]]:
    """What is learned from and what is evaluated on, in tokens."""
    if answers_anew(run.options):
        records, held = _answered(run, records, held)
    length = run.options.max_seq_length
    rows = tokenize(records, run.tokenizer, length)
    held_rows = tokenize(held, run.tokenizer, length, name="The held-out part of the data")
    run.callback.note(
        f"{sum(int(row.answer.sum()) for row in rows):,} tokens of answers to learn from, in "
        f"{len(rows)} rows of {len(records)} records; {len(held_rows)} rows held out."
    )
    return rows, held_rows
