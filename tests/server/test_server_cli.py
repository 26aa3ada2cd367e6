"""The command line: what it says, what it refuses, how it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from bundles import make_bundle
from live_server import eventually

from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.sampling import SamplingConfig
from mlx_redrafter.server import loading, running
from mlx_redrafter.server.loading import ModelSpec
from mlx_redrafter.server.settings import ServerSettings
from mlx_redrafter.ui.cli import serve_flags
from mlx_redrafter.ui.cli.serve import main
from mlx_redrafter.ui.cli.serve_flags import read_flags, size


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_bundle(tmp_path_factory.mktemp("cli") / "tiny", drafter=False, context=40_000)
    config = made / "tokenizer_config.json"
    told = json.loads(config.read_text("utf-8")) | {"model_max_length": 40_000}
    config.write_text(json.dumps(told), "utf-8")
    return made


@pytest.fixture
def process(bundle: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "mlx_redrafter.server", "--model", str(bundle), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as started:
        yield started
        started.kill()


def said_until(process: subprocess.Popen[str], words: str) -> list[str]:
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line.strip())
        if words in line:
            return lines
    raise AssertionError(f"never said {words}: {lines}")


def test_it_serves_until_it_is_told_to_stop(process: subprocess.Popen[str], bundle: Path) -> None:
    lines = said_until(process, "Anthropic")
    url = lines[-1].split()[-1]
    body = {"messages": [{"role": "user", "content": "the dog"}], "max_tokens": 4}
    made = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    assert made.status_code == 200
    assert made.json()["model"] == "tiny"
    assert str(bundle.parent) not in made.text
    long = httpx.post(f"{url}/v1/completions", json={"prompt": "the dog " * 30_000}, timeout=60)
    assert long.json()["error"]["code"] == "context_length_exceeded"
    process.send_signal(signal.SIGTERM)
    assert "transformers" not in "".join(said_until(process, "Stopped"))
    assert process.wait(30) == 0


def test_an_interrupted_server_says_that_it_stopped(process: subprocess.Popen[str]) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        pytest.skip("whoever started these tests ignores it, and so does what they start")
    said_until(process, "Anthropic")
    process.send_signal(signal.SIGINT)
    said_until(process, "Stopped.")
    assert process.wait(30) == 130
    assert process.stderr is not None
    assert process.stderr.read() == ""


# Measuring that takes for ever; the interpreter would not end before it, or in the middle of it.
LOADS = """
import sys, time
from mlx_redrafter.server import loading
from mlx_redrafter.system.last_threads import computing

def load(*_arguments, **_options):
    with computing():
        sys.stderr.write("loads\\n")
        sys.stderr.flush()
        time.sleep(100)

loading.load = load
from mlx_redrafter.ui.cli.serve import main
sys.exit(main(["--port", "0", "--model", sys.argv[1]]))
"""


def test_loading_that_is_interrupted_ends_at_once(bundle: Path) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        pytest.skip("whoever started these tests ignores it, and so does what they start")
    command = [sys.executable, "-c", LOADS, str(bundle)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            said_until(process, "loads")
            process.send_signal(signal.SIGINT)
            assert process.wait(3) == 130
            assert process.stderr is not None
            assert process.stderr.read() == ""
        finally:
            process.kill()


class Busy:
    """An engine that is in the middle of something long, and a server that Ctrl-C has ended."""

    def __init__(self, interrupted: bool) -> None:
        self.interrupted = interrupted

    def end(self) -> None:
        """Not yet."""

    def stop(self) -> bool:
        return False

    def run(self, **_: Any) -> None:
        if self.interrupted:
            raise KeyboardInterrupt  # so uvicorn ends, once it is done


@pytest.mark.parametrize(("interrupted", "code"), [(False, 0), (True, 130)])
def test_an_engine_that_is_still_at_work_is_left_however_serving_ended(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, interrupted: bool, code: int
) -> None:
    busy = Busy(interrupted)
    monkeypatch.setattr(running, "make_server", lambda *_: busy)
    monkeypatch.setattr(loading, "load_models", lambda *_: (busy, {}))
    monkeypatch.setattr(os, "_exit", lambda code: sys.exit(f"left with {code}"))
    with pytest.raises(SystemExit, match=f"left with {code}"):
        main(["--model", str(bundle), "--port", "0"])


def listens(url: str) -> bool:
    try:
        httpx.get(url)
    except httpx.TransportError:  # refused, or closed while it was taken
        return False
    return True


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_does_not_wait_for_answers(bundle: Path, first: signal.Signals) -> None:
    if signal.getsignal(first) is signal.SIG_IGN:
        pytest.skip("the tests run under nohup, and so would the server")
    command = [sys.executable, "-m", "mlx_redrafter.server", "--model", str(bundle), "--port", "0"]
    body = {
        "messages": [{"role": "user", "content": "the dog"}],
        "stream": True,
        "logit_bias": {"0": -100},  # it does not end by itself
        "max_tokens": 20_000,
    }
    command += ["--grace", "600"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            url = f"{said_until(process, 'Anthropic')[-1].split()[-1]}/v1/chat/completions"
            with httpx.stream("POST", url, json=body, timeout=60) as response:
                lines = response.iter_lines()
                next(lines)
                process.send_signal(first)
                # Two signals in one breath are one: wait until the first has been taken.
                assert eventually(lambda: not listens(url))
                next(lines)  # the answer goes on
                process.send_signal(signal.SIGTERM)
                rest = [line for line in lines if line]
            assert "The server is shutting down." in rest[-1]
            assert process.wait(30) == 0
            assert process.stderr is not None
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()


def test_slips_are_told_in_one_sentence(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["--model", str(bundle), "--port", port]) == 2
    told = capsys.readouterr().err
    assert "pass another --host or --port" in told
    assert "(Address already in use):" in told
    assert main(["--model", str(tmp_path / "none"), "--port", "0"]) == 2
    assert "check the path" in capsys.readouterr().err
    two = ["--model", str(bundle), "--model", f"{bundle}/../tiny", "--port", "0"]
    assert main(two) == 2
    told = capsys.readouterr().err
    assert f"The model {bundle}/../tiny is given twice: leave one out." in told
    other = tmp_path / "other" / bundle.name
    shutil.copytree(bundle, other)
    assert main(["--model", str(bundle), "--model", str(other), "--port", "0"]) == 2
    told += capsys.readouterr().err
    assert "Two models are called tiny: rename one of the directories." in told
    assert "Loading" not in told
    assert main([*two, "--drafter", "x"]) == 2
    assert main(["--api-key-file", str(tmp_path / "none")]) == 2
    assert main(["--api-key", ""]) == 2
    for flags in (
        ["--cache-memory", "lots"],
        ["--grace", "-1"],
        ["--port", "99999"],
        ["--max-body", "0"],
        ["--max-body", "0.5"],
        ["--allowed-origin", "app.example"],
        ["--allowed-origin", "http://app.example/page"],
        ["--allowed-origin", "http://me@app.example"],
        ["--allowed-origin", "http://["],
        ["--allowed-origin", ""],
    ):
        with pytest.raises(SystemExit) as caught:
            main(flags)
        assert caught.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert all("Traceback" not in line for line in lines)


def test_sizes_and_keys_are_read(tmp_path: Path) -> None:
    assert [size(text) for text in ("0", "4GB", "1.5m", "16 MiB", "7", "2Gi", "3KiB")] == [
        0,
        4 * 10**9,
        1_500_000,
        16 * 2**20,
        7,
        2 * 2**30,
        3 * 1024,
    ]
    assert read_flags(["--max-body", "16 MiB"]).settings() == read_flags([]).settings()
    (tmp_path / "key").write_text("secret\n", "utf-8")
    key = str(tmp_path / "key")
    settings = read_flags(["--api-key-file", key, "--temp", "0.5"]).settings()
    assert settings.api_key == "secret"
    assert settings.sampling == {"temperature": 0.5}
    assert settings.cache_memory > 10**8
    with pytest.raises(RedrafterError, match="choose one"):
        read_flags(["--api-key-file", key, "--api-key", "other"]).settings()


def test_where_the_memory_is_not_known_prefixes_get_what_the_settings_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serve_flags, "usable_memory", lambda: None)
    assert read_flags([]).settings().cache_memory == ServerSettings().cache_memory
    assert read_flags(["--cache-memory", "1MB"]).settings().cache_memory == 10**6


@pytest.mark.parametrize("raw", [b"\xef\xbb\xbfsecret\r\n", b" secret\n\n", b"secret"])
def test_a_key_is_kept_as_a_header_can_show_it(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "key").write_bytes(raw)
    from_file = ["--api-key-file", str(tmp_path / "key")]
    for flags in (from_file, ["--api-key", " secret "]):
        assert read_flags(flags).settings().api_key == "secret"


@pytest.mark.parametrize(
    ("key", "fault"),
    [
        ("  ", "empty"),
        ("one\ntwo", "line break"),
        ("a\x00b", "line break"),
        ("\udce9", "line break"),
    ],
)
def test_a_key_that_no_header_can_show_is_refused(
    key: str, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--api-key", key]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert fault in told[0]


def test_arguments_of_the_template_are_read() -> None:
    flag = "--chat-template-args"
    assert read_flags([]).settings().template == {}
    given = read_flags([flag, '{"enable_thinking": false}']).settings().template
    assert given == {"enable_thinking": False}
    with pytest.raises(RedrafterError, match="'messages', which the server sets itself"):
        read_flags([flag, '{"messages": []}']).settings()


def test_an_address_may_be_written_as_in_a_url() -> None:
    assert read_flags(["--host", "[::1]"]).settings().host == "::1"
    assert read_flags(["--host", "::1"]).settings().host == "::1"


def test_origins_are_read_as_browsers_write_them() -> None:
    given = {
        "*": "*",
        "null": "null",
        "http://app.example/": "http://app.example",
        "HTTPS://App.Example:443": "https://app.example",
        "http://app.example:443": "http://app.example:443",
        "http://[::1]:80/": "http://[::1]",
        "app://obsidian.md": "app://obsidian.md",
    }
    words = [word for text in given for word in ("--allowed-origin", text)]
    assert read_flags(words).settings().allowed_origins == tuple(given.values())


def test_every_sampling_option_is_a_flag() -> None:
    given = {"temp": 0.5, "top_p": 0.9, "xtc_probability": 0.3, "presence_penalty": 1.5, "seed": 7}
    words = [
        word for name, value in given.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]  # fmt: skip
    sampling = read_flags(words).settings().sampling
    assert sampling == {"temperature" if k == "temp" else k: v for k, v in given.items()}
    SamplingConfig(**sampling)


def test_flags_say_no(capsys: pytest.CaptureFixture[str]) -> None:
    flags = read_flags(["--no-draft", "--no-plan", "--no-copy", "--model", "a", "--model", "b"])
    assert not flags.settings().copies
    assert [(spec.path, spec.drafter, spec.plan) for spec in flags.specs()] == [
        ("a", False, False),
        ("b", False, False),
    ]
    assert not read_flags(["--no-draft"]).settings().copies, "it decodes plainly"
    with pytest.raises(SystemExit):
        read_flags(["--top-p", "2"])
    assert "a finite number from 0 to 1 is needed, not '2'" in capsys.readouterr().err


def test_a_name_shows_no_path(bundle: Path) -> None:
    assert ModelSpec(str(bundle)).name == "tiny"
    assert ModelSpec(f"{bundle}/../tiny/").name == "tiny"
    assert ModelSpec("mlx-community/SmolLM2-135M").name == "mlx-community/SmolLM2-135M"


def test_an_open_address_without_a_key_is_warned_of(
    bundle: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = ["--host", "0.0.0.0", "--port", "0", "--model", str(tmp_path / "none")]
    assert main(flags) == 2
    assert "Warning: 0.0.0.0 is reachable" in capsys.readouterr().err
    assert main([*flags, "--api-key", "x"]) == 2
    assert "Warning" not in capsys.readouterr().err


def test_measuring_is_announced_only_where_there_will_be_any(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "none"}', "utf-8")
    flags = ["--port", "0", "--model", str(tmp_path)]
    assert main(flags) == 2
    assert "is measured too) ..." in capsys.readouterr().err
    assert main([*flags, "--no-plan"]) == 2
    assert f"Loading {tmp_path.name} ...\n" in capsys.readouterr().err
