"""A model, a stream and a front end that need no weights, for tests of the chat."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from mlx_redrafter.engine.statistics import AcceptanceStats
from mlx_redrafter.engine.step import StepRecord
from mlx_redrafter.text.responses import GenerationResponse
from mlx_redrafter.tree import HostTree
from mlx_redrafter.ui.chat.answer import ModelFacts
from mlx_redrafter.ui.chat.session import Session
from mlx_redrafter.ui.chat.settings import ChatSettings
from mlx_redrafter.ui.theme import THEME

FACTS = ModelFacts("fake", "recurrent, small", "CPU", "float32", (2, 2))


class FakeCache:
    def __init__(self) -> None:
        self.tokens: list[int] = []

    def __len__(self) -> int:
        return len(self.tokens)

    def reset(self) -> None:
        self.tokens.clear()


class FakeModel:
    head = leader = ranks = None

    def __init__(self, drafter: object = "drafter") -> None:
        self.drafter = drafter
        self.name = "fake"
        self.context_limit: int | None = 200

    def room(self, asked: int | None) -> int | None:
        return asked or self.context_limit

    def make_cache(self) -> FakeCache:
        return FakeCache()


class CharTokenizer:
    """One token a character."""

    has_chat_template = True
    bos_token = None

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        return "".join(f"<{m['role']}>{m['content']}" for m in messages)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return [ord(c) for c in text]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(map(chr, tokens))

    def convert_ids_to_tokens(self, token: int) -> str:
        return chr(token)


# Two beams of two tokens: "lo" under the root "e", of which "l" was accepted, and "al".
STEP = StepRecord(
    tree=HostTree(
        tokens=tuple(map(ord, "eloal")),
        parents=(-1, 0, 1, 0, 3),
        log_probs=(0.0, -0.1, -0.7, -2.0, -2.5),
    ),
    choices=tuple(map(ord, "lp...")),
    path=(0, 1),
)


class FakeStream:
    """Answers everything with ``text``, one character a token, every other one drafted."""

    def __init__(self, text: str = "hello", finish: str = "stop") -> None:
        self.text = text
        self.finish = finish
        self.calls: list[dict[str, Any]] = []
        self.closed = 0
        self.on_token: Callable[[int], None] = lambda count: None

    def __call__(
        self, model: Any, tokenizer: Any, prompt: Sequence[int], **settings: Any
    ) -> Iterator[GenerationResponse]:
        self.calls.append({"prompt": "".join(map(chr, prompt)), **settings})
        return self._stream(settings["draft"], settings["max_tokens"])

    def _stream(self, draft: bool, limit: int) -> Iterator[GenerationResponse]:
        stats = AcceptanceStats()
        text = self.text[:limit]
        try:
            for count, character in enumerate(text, start=1):
                self.on_token(count)
                stats.record([1, 2, 1, 2] if draft else [], int(draft), 1 + int(draft))
                stats.verify_seconds += 0.01  # so drafts are twice as fast
                last = count == len(text)
                finish = "length" if len(text) < len(self.text) else self.finish
                yield GenerationResponse(
                    text=character,
                    token=ord(character),
                    from_draft=draft and count % 2 == 0,
                    source="guessed" if draft and count % 2 == 0 else "own",
                    finish_reason=finish if last else None,
                    prompt_tokens=5,
                    prompt_tps=1.0,
                    generation_tokens=count,
                    generation_tps=200.0 if draft else 100.0,
                    peak_memory=0.5,
                    stats=stats,
                    step=STEP if draft and count > 1 else None,
                )
        finally:
            self.closed += 1


class RecordingFrontEnd:
    """Keeps what it is told."""

    attended = True

    def __init__(self, lines: Iterable[str] = ()) -> None:
        self.lines = iter(lines)
        self.said: list[str] = []
        self.complaints: list[str] = []
        self.shown: list[str] = []
        self.answers: list[str] = []

    def welcome(self, session: Session) -> None:
        self.said.append("welcome")

    def read(self) -> str:
        try:
            return next(self.lines)
        except StopIteration:
            raise EOFError from None

    def stream(self, session: Session, responses: Iterable[GenerationResponse]) -> None:
        for response in responses:
            self.answers.append(response.text)

    def conclude(self, session: Session, answer: Any) -> None:
        self.answers.append("|")

    def show(self, view: Any) -> None:
        console = Console(theme=THEME, width=100, color_system=None, force_terminal=False)
        with console.capture() as captured:
            console.print(view)
        self.shown.append(captured.get())

    def say(self, sentence: str) -> None:
        self.said.append(sentence)

    def complain(self, sentence: str) -> None:
        self.complaints.append(sentence)

    def confirm(self, question: str) -> bool:
        self.said.append(question)
        return False

    @contextmanager
    def progress(self, words: str) -> Iterator[Any]:
        yield lambda _done, _total: None

    @contextmanager
    def busy(self, words: str) -> Iterator[None]:
        yield


def make_session(
    stream: FakeStream | None = None, settings: ChatSettings | None = None, drafter: object = "d"
) -> Session:
    model: Any = FakeModel(drafter)
    return Session(
        model, CharTokenizer(), FACTS, settings or ChatSettings(), stream or FakeStream()
    )
