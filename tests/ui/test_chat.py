"""The chat as people run it: as a process, through pipes and on a pseudo-terminal."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bundles import make_bundle

from mlx_redrafter.system.blas import INSTALL_HINT
from mlx_redrafter.ui.chat import main as chat

pytestmark = pytest.mark.usefixtures("no_hint")

ROOT = Path(__file__).resolve().parents[2]
CHAT = [sys.executable, str(ROOT / "chat.py")]
STATISTICS = {
    "steps", "tokens_per_step", "drafted", "accepted", "acceptance_by_depth", "histogram",
    "draft_seconds", "verify_seconds", "generation_tps", "generation_tokens", "text",
    "finish_reason",
}  # fmt: skip


def environment(home: Path) -> dict[str, str]:
    # Buffered as Python's streams are by default, whatever the tests themselves run with.
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    return {**kept, "HOME": str(home), "HF_HUB_OFFLINE": "1", "TERM": "xterm-256color"}


def run(home, *arguments, text="", **extra):
    return subprocess.run(
        [*CHAT, *map(str, arguments)],
        input=text, capture_output=True, text=True, timeout=120,
        env={**environment(home), **extra}, encoding="utf-8",
    )  # fmt: skip


def shell(home, line):
    """A command line with its streams as a shell redirects them."""
    return subprocess.run(
        ["sh", "-c", line.replace("CHAT", " ".join(CHAT))],
        capture_output=True, text=True, timeout=120, env=environment(home),
    )  # fmt: skip


def test_streams_that_are_closed(tmp_path, bundle):
    one = f"CHAT --model {bundle} --no-draft -p hi -m 4"
    plain = shell(tmp_path, f"{one} < /dev/null")
    assert plain.returncode == 0
    assert plain.stdout
    for closed in ("<&-", "2>&-", "<&- 2>&-"):
        made = shell(tmp_path, f"{one} {closed}")
        assert (made.returncode, made.stdout) == (0, plain.stdout), made.stderr
    assert shell(tmp_path, f"CHAT --model {bundle} --no-draft <&-").returncode == 0
    nowhere = shell(tmp_path, f"{one} >&-")
    assert nowhere.returncode == 2
    assert (
        nowhere.stderr == "chat.py: standard output is closed: give the answer somewhere to go.\n"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_behind_the_output(tmp_path, bundle):
    one = f"CHAT --model {bundle} --no-draft -p hi -m 4"
    for json_too in ("", "--json"):
        full = shell(tmp_path, f"{one} {json_too} > /dev/full")
        assert full.returncode == 2
        words = "chat.py: the output cannot be written: No space left on device."
        assert full.stderr.splitlines()[-1] == words
        assert "Traceback" not in full.stderr
    # What cannot be said on stderr changes nothing else.
    told = shell(tmp_path, "CHAT --help > /dev/full")
    assert (told.returncode, told.stderr) == (2, f"{words}\n")
    assert shell(tmp_path, f"{one} 2>/dev/full").returncode == 0
    assert shell(tmp_path, "CHAT --model /nowhere 2>/dev/full").returncode == 2
    assert shell(tmp_path, "CHAT --temp nan 2>&-").returncode == 2


def test_a_directory_that_is_gone(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    made = shell(tmp_path, f"cd {gone} && rmdir {gone} && PYTHONSAFEPATH=1 CHAT -p hi")
    assert made.returncode == 2
    words = "chat.py: the current directory does not exist any more: change to another one."
    assert made.stderr.splitlines()[-1] == words
    assert "Traceback" not in made.stderr


def test_advice_that_one_answer_can_follow(tmp_path, bundle):
    """Nobody can type a command after --prompt."""
    # Next to nothing is left to chance: an end among the three tokens would be no cut.
    cut = run(tmp_path, "--model", bundle, "--no-draft", "-p", "hi", "-m", 3, "--temp", 0.01)
    assert "Cut after 3 tokens: --max-tokens allows more." in cut.stderr
    assert "Drawn with seed" in cut.stderr
    full = run(tmp_path, "--model", bundle, "--no-draft", "-p", "hi", "--context-limit", 1)
    assert full.returncode == 2
    assert "ask something shorter" in full.stderr
    for made in (cut, full):
        assert "/" not in made.stderr.replace("/step", "").replace("/s", "")


# In this process, where only the words matter and not the streams.


def refuse(capsys, *arguments):
    """Run a command line that cannot go on; return its one sentence."""
    try:
        code = chat.main([str(a) for a in arguments])
    except SystemExit as leaving:
        code = leaving.code
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "Traceback" not in printed.err
    return printed.err


def test_no_such_path(capsys):
    assert "/no/such/model" in refuse(capsys, "--model", "/no/such/model", "--prompt", "x")


def test_not_a_model(capsys, tmp_path):
    refuse(capsys, "--model", tmp_path, "--prompt", "x")
    (tmp_path / "config.json").write_text("{}")
    refuse(capsys, "--model", tmp_path, "--prompt", "x")
    refuse(capsys, "--model", tmp_path / "config.json", "--prompt", "x")


def test_damaged_weights(capsys, tmp_path):
    broken = make_bundle(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"not weights")
    assert "broken" in refuse(capsys, "--model", broken, "--prompt", "x")


def test_no_such_drafter(capsys, bundle):
    assert "/no/drafter" in refuse(
        capsys, "--model", bundle, "--drafter", "/no/drafter", "--prompt", "x"
    )


def test_a_revision_of_what_is_not_fetched_is_told(capsys, bundle):
    assert (
        chat.main(["--model", str(bundle), "--revision", "v1", "--prompt", "x", "--no-draft"]) == 0
    )
    told = f"{bundle} has no other revisions, so --revision is not used.\n"
    assert capsys.readouterr().err.startswith(told)


def test_too_long_a_prompt(capsys, bundle):
    assert "400" in refuse(capsys, "--model", bundle, "--prompt", "word " * 900)


def test_a_beam_wider_than_the_drafters_vocabulary(capsys, bundle):
    assert "beam width" in refuse(capsys, "--model", bundle, "--beam-width", 1000, "--prompt", "x")


def talk(bundle, monkeypatch, capsys, text, *arguments):
    """Hold a conversation through pipes; return what came out."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert chat.main(["--model", str(bundle), "--max-tokens", "12", *arguments]) == 0
    return capsys.readouterr()


def test_drafted_and_plain_answers_are_the_same(bundle, monkeypatch, capsys):
    texts = []
    for flags in ([], ["--no-draft"], ["--beam-width", "2", "--beam-length", "3"]):
        printed = talk(bundle, monkeypatch, capsys, "", "--prompt", "hello", "--json", *flags)
        texts.append(json.loads(printed.out.splitlines()[-1])["text"])
    assert texts[0] == texts[1] == texts[2] != ""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere mlx is fast by itself")
def test_a_missing_blas_is_told_in_one_line(bundle, monkeypatch, capsys):
    import mlx.core as mx

    if mx.default_device().type != mx.DeviceType.cpu:
        pytest.skip("only a CPU needs it")
    monkeypatch.setattr("mlx_redrafter.blas_loaded", False)
    printed = talk(bundle, monkeypatch, capsys, "/quit\n")
    assert printed.out == ""
    assert printed.err == INSTALL_HINT + "\n"


def test_json_is_the_last_line(bundle, monkeypatch, capsys):
    printed = talk(bundle, monkeypatch, capsys, "", "--prompt", "hello", "--json")
    *text, last = printed.out.splitlines()
    values = json.loads(last)
    assert values.keys() >= STATISTICS
    assert values["generation_tokens"] == 12
    assert values["finish_reason"] == "length"
    assert values["text"]
    assert text == [], "stdout is JSON alone"


def test_prompt_prints_the_answer_alone(bundle, monkeypatch, capsys):
    printed = talk(bundle, monkeypatch, capsys, "", "--prompt", "hello")
    assert printed.out.count("tok/s") == 0


def test_the_same_commands_work_through_pipes(bundle, monkeypatch, capsys, tmp_path):
    script = [
        "hello", "/tree", "/stats", "/compare", "/draft off", "and \\", "then", "/reset",
        f"/save {tmp_path}/none", "/oops", "/temp 1", "hello", f"/save {tmp_path}/talk",
        f"/load {tmp_path}/talk", "/help", "/quit", "not reached",
    ]  # fmt: skip
    shape = ["--beam-width", "2", "--beam-length", "3"]
    printed = talk(bundle, monkeypatch, capsys, "\n".join(script), *shape)
    assert printed.err.count(" tokens · ") == 3
    for words in (
        "supplied by the model",
        "accepted at each depth",
        "identical",
        "A new conv",
        "Answers are now temperature 1",
        "Saved 2 messages",
        "Loaded 2",
        "/compare  ",
    ):
        assert words in printed.out, words
    assert "There is no command /oops" in printed.err
    assert "no conversation to save" in printed.err


def test_turns_go_on_until_the_context_is_full(bundle, monkeypatch, capsys):
    printed = talk(bundle, monkeypatch, capsys, "hello there my friend\n" * 40)
    assert printed.err.count("/reset") >= 1
    assert printed.err.count("tok/s") >= 3


# As a process.


def test_pipes_get_no_control_codes_even_if_colours_are_forced(tmp_path, bundle):
    done = run(
        tmp_path, "--model", bundle, "--max-tokens", 12, "--beam-width", 2, "--beam-length", 3,
        text="hello\n/tree\n/stats\n/help\n/quit\n",
        FORCE_COLOR="1", TTY_COMPATIBLE="1", TTY_INTERACTIVE="1",
    )  # fmt: skip
    assert done.returncode == 0
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", done.stdout + done.stderr)
    assert "supplied by the model" in done.stdout


def test_bytes_that_are_no_text_and_a_poor_encoding_are_survived(tmp_path, bundle):
    done = subprocess.run(
        [*CHAT, "--model", str(bundle), "--max-tokens", "12"],
        input=b"caf\xe9 \xff\n/stats\n", capture_output=True, timeout=120,
        env={**environment(tmp_path), "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert b"tokens per step" in done.stdout


def test_marks_that_an_encoding_lacks_are_like_them(tmp_path, bundle):
    done = subprocess.run(
        [*CHAT, "--model", str(bundle), "--max-tokens", "12", "--beam-width", "1"],
        input=b"hello\n/tree\n/stats\n", capture_output=True, timeout=120,
        env={**environment(tmp_path), "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    shown = done.stdout.decode("ascii")
    assert re.search(r"-- > .*supplied by the model", shown)
    assert re.search(r" 1  #[^?]*%", shown), "a bar"


def test_a_reader_that_leaves_is_no_error(tmp_path, bundle):
    pipeline = f'{CHAT[0]} {CHAT[1]} --model "$1" --max-tokens 60 | head -c 1'
    done = subprocess.run(
        ["/bin/sh", "-c", pipeline, "sh", str(bundle)],
        input="hello\n" * 20, capture_output=True, text=True, timeout=120,
        env=environment(tmp_path), errors="replace",
    )  # fmt: skip
    assert "Error" not in done.stderr
    assert "Traceback" not in done.stderr
    # A table is Rich's to write, which has an exit code of its own for this.
    helped = f"printf '/help\\n/help\\n' | CHAT --model {bundle} --no-draft"
    assert shell(tmp_path, f"{{ {helped}; echo $? >&2; }} | true").stderr == "0\n"


# On a terminal.

pexpect = pytest.importorskip("pexpect")
PROMPT = r"> \x1b\[0m"


def ignore_interrupts():
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def spawn(home, bundle, *arguments, prepare=None):
    child = pexpect.spawn(
        CHAT[0], [CHAT[1], "--model", str(bundle), *arguments],
        env=environment(home), encoding="utf-8", dimensions=(30, 100), timeout=60,
        preexec_fn=prepare,
    )  # fmt: skip
    child.logfile_read = io.StringIO()
    # As a person would: Python can miss a Ctrl-C that comes while readline handles a key.
    child.delaybeforesend = 0.3
    return child


def interrupt_line(child):
    """Ctrl-C at the prompt; again where CPython's readline missed it, as a person would."""
    for _ in range(6):
        time.sleep(0.5)  # sendintr knows no delay
        child.sendintr()
        if child.expect([PROMPT, pexpect.TIMEOUT], timeout=10) == 0:
            return
    pytest.fail("Ctrl-C at the prompt never brought a new one")


# Shells start programs in the background with SIGINT ignored, and theirs inherit that.
@pytest.mark.parametrize("prepare", [None, ignore_interrupts])
def test_a_conversation_on_a_terminal(tmp_path, bundle, prepare):
    shape = ["--beam-width", "2", "--beam-length", "3"]
    child = spawn(tmp_path, bundle, "--max-tokens", "350", *shape, prepare=prepare)
    child.expect("guessed by the drafter")
    child.expect("Ctrl-D leaves")
    child.expect(PROMPT)

    child.sendline("hello there")
    child.expect("tok/step")
    child.sendintr()
    child.expect("Stopped; the conversation keeps what was said")
    child.expect(PROMPT)

    child.sendline("/sax\x7fve " + str(tmp_path / "talk.json"))  # edited before it is sent
    child.expect("Saved 2 messages")
    child.expect(PROMPT)
    partial = json.loads((tmp_path / "talk.json").read_text("utf-8"))["messages"][1]["content"]
    assert partial

    child.send("half a line")
    child.expect("half a line")
    interrupt_line(child)
    child.sendline("go \\")
    child.expect(r"\. ")
    child.sendline("on")
    child.expect(r"\d+ tokens · ")
    child.expect(PROMPT)
    child.send("\x1b[200~two\rlines\x1b[201~")  # a paste
    child.sendline("")
    child.expect(r"\d+ tokens? · |/reset")
    child.expect(PROMPT)
    child.sendline("/nonsense")
    child.expect("There is no command /nonsense")
    child.sendline("/tr\t")
    child.expect("supplied by the model")
    child.expect(PROMPT)
    child.send("\x1b[A\x1b[A")  # up twice: the line before
    child.expect("nonsense")  # readline draws only what differs
    interrupt_line(child)
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert "Traceback" not in child.logfile_read.getvalue()

    history = (tmp_path / ".local/state/mlx-redrafter/chat_history").read_text("utf-8")
    assert [json.loads(line) for line in history.splitlines()][:4] == [
        "hello there", f"/save {tmp_path}/talk.json", "go \non", "two\nlines",
    ]  # fmt: skip


@pytest.mark.parametrize("loading", [False, True])
def test_ctrl_c_at_the_start_is_quiet(tmp_path, bundle, loading):
    child = spawn(tmp_path, bundle)
    if loading:
        child.expect("Loading")
    else:
        time.sleep(0.5)  # Python itself is up by then, its imports are not done
    child.sendintr()
    child.expect([pexpect.EOF, PROMPT])
    if child.after is not pexpect.EOF:
        child.sendeof()
        child.expect(pexpect.EOF)
    child.close()
    assert "Traceback" not in child.logfile_read.getvalue()


# On the real thing.

POCKET = ROOT / "models" / "pocket"


@pytest.mark.skipif(
    not (POCKET / "drafter" / "model.safetensors").is_file(),
    reason="the pocket bundle is not here",
)
def test_the_pocket_answers_and_drafts(tmp_path):
    # A shape of its own: the planner may well decide on plain decoding here.
    beam = ("--beam-width", "4", "--beam-length", "5")
    done = run(tmp_path, "--prompt", "What does itertools.chain do?", "--json", *beam)
    assert done.returncode == 0
    values = json.loads(done.stdout.splitlines()[-1])
    assert "chain" in values["text"]
    assert values["finish_reason"] == "stop"
    assert values["tokens_per_step"] > 2
