"""Nothing that a file, a model or a person brings along reaches the terminal as an order."""

from __future__ import annotations

import ast
import io
import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path

import bundles
import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from mlx_redrafter.system.visible import visible, visible_json, visible_line, whole_characters
from mlx_redrafter.ui.chat import main as chat
from mlx_redrafter.ui.cli import convert
from mlx_redrafter.ui.output import make_console

UI = Path(__file__).resolve().parents[2] / "mlx_redrafter" / "ui"
# All that may steer a terminal; newlines and tabs are checked apart.
ORDERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
HOSTILE = (
    "\x1b]0;title\x07", "\x1b]52;c;Zm9v\x07", "\x1b[2J", "\x1b[31m", "\x9b31m", "\x9d0;x\x9c",
    "\x07", "\x08\x08", "\r", "\x7f", "\u202eevil", "\u2066", "\u2028", "\x85", "[bold]",
    "[link=x]", "\x00",
)  # fmt: skip


@given(st.text(alphabet=st.characters(codec=None), max_size=40))
def test_no_text_keeps_orders(text: str) -> None:
    for shown in (visible(text), visible_line(text), visible_json({text: [text]})):
        assert not ORDERS.search(shown)
    assert "\n" not in visible_line(text)
    assert "\n" not in visible_json([text])
    assert whole_characters(visible(text)) == visible(text)


@given(st.text(max_size=40))
def test_json_stays_what_it_was(text: str) -> None:
    assert json.loads(visible_json({"text": text})) == {"text": text}


def test_what_is_harmless_stays() -> None:
    text = "Grüße, 日本 \U0001f600, עברית\u200f, a\tb\n"
    assert visible(text) == text


def test_a_line_is_cut_in_its_middle() -> None:
    assert visible_line("a" * 50 + "z" * 50, 21) == "a" * 10 + " ... " + "z" * 6


def test_tables_are_made_visible_and_brackets_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(title="".join(HOSTILE))
    table.add_column("[bold]head[/bold]")
    for text in HOSTILE:
        table.add_row(text)
    make_console(plain_width=80).print(table)
    shown = capsys.readouterr().out
    assert not ORDERS.search(shown)
    assert "[bold]head[/bold]" in shown


def test_everything_is_printed_in_one_place() -> None:
    """Elsewhere nothing calls print, writes to a stream or makes a console of its own."""
    found = []
    for path in UI.rglob("*.py"):
        if path.name in ("output.py", "parsing.py"):  # a parser's complaint needs nothing slow
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called in ("print", "Console", "sys.stdout.write", "sys.stderr.write"):
                    found.append(f"{path.relative_to(UI)}:{node.lineno} {called}")
    assert found == []


def hostile(chance: random.Random) -> str:
    return "x" + "".join(chance.choices(HOSTILE, k=3)) + "y"


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def add_tensor(path: Path, name: str) -> None:
    weights = {**mx.load(str(path)), name: mx.zeros((2,))}
    mx.save_safetensors(str(path), weights, {"format": "mlx"})


# Each spoils a bundle with a text that an error sentence may quote.
PLACES: dict[str, Callable[[Path, str], object]] = {
    "model type": lambda b, t: change(b / "config.json", model_type=t),
    "activation": lambda b, t: change(b / "config.json", rope_scaling={"type": t, "rope_type": t}),
    "quantisation": lambda b, t: change(b / "config.json", quantization=t),
    "tensor": lambda b, t: add_tensor(b / "model.safetensors", t.replace("\x00", "")),
    "drafter's tensor": lambda b, t: add_tensor(
        b / "drafter" / "model.safetensors", t.replace("\x00", "")
    ),
    "drafter's kind": lambda b, t: change(b / "drafter" / "config.json", model_type=t),
    "drafter's target": lambda b, t: change(
        b / "drafter" / "config.json", target={"name": t, "tokenizer_hash": "0"}
    ),
    "template": lambda b, t: (b / "chat_template.jinja").write_text(
        "{{ raise_exception(" + json.dumps(t) + ") }}"
    ),
    "tokenizer class": lambda b, t: change(b / "tokenizer_config.json", tokenizer_class=t),
    "readme": lambda b, t: (b / "README.md").write_text(f"{t}. A model.", "utf-8"),
}


@pytest.mark.parametrize("what", PLACES)
def test_error_sentences_of_chat_and_convert_quote_nothing_raw(
    what: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chance = random.Random(what)
    monkeypatch.setattr("mlx_redrafter.blas_loaded", True)
    for attempt in range(2):
        bundle = bundles.make_bundle(tmp_path / f"b{attempt}")
        PLACES[what](bundle, hostile(chance))
        # A question or two, so that what a model says is shown as well.
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"hello\n/load {hostile(chance)}\n/tree\n"))
        codes = [chat.main(["--model", str(bundle), "--max-tokens", "4", "--beam-width", "2"])]
        out = str(tmp_path / f"out{attempt}")
        codes.append(convert.main(["--hf-path", str(bundle), "--mlx-path", out]))
        printed = capsys.readouterr()
        assert not ORDERS.search(printed.out.replace("\r", "")), codes
        assert not ORDERS.search(printed.err.replace("\r", "")), codes
        assert "Traceback" not in printed.err
        assert set(codes) <= {0, 2}


def test_names_on_the_command_line_are_made_visible(capsys: pytest.CaptureFixture[str]) -> None:
    for text in HOSTILE:
        with pytest.raises(SystemExit):
            chat.main(["--beam-width", text])
        assert chat.main(["--model", f"./{text}", "--prompt", "x"]) == 2
    assert not ORDERS.search(capsys.readouterr().err)


def test_answers_in_json_hold_no_orders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_redrafter.blas_loaded", True)
    bundle = bundles.make_bundle(tmp_path / "b")
    arguments = ["--model", str(bundle), "--max-tokens", "60", "--no-draft", "--temp", "9"]
    arguments += ["--seed", "1"]  # one answer in some hundreds is empty
    assert chat.main([*arguments, "--prompt", "\x9b\u202e", "--json"]) == 0
    printed = capsys.readouterr()
    assert not ORDERS.search(printed.out)
    assert json.loads(printed.out)["text"]
