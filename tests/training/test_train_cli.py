"""The training command: flags, YAML, sentences, Ctrl-C."""

from __future__ import annotations

import errno
import json
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from bundles import make_bundle
from mlx.utils import tree_flatten
from training_files import TINY, chats, weights, write

from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.training.held_out import learned_from
from mlx_redrafter.training.options import TrainingOptions, read_config
from mlx_redrafter.training.record import TrainingCallback
from mlx_redrafter.training.sources import read_data
from mlx_redrafter.ui.cli import train as train_cli
from mlx_redrafter.ui.cli import train_screen
from mlx_redrafter.ui.cli.train import build_parser, main


def flags(settings: dict) -> list[str]:
    return [x for k, v in settings.items() for x in (f"--{k.replace('_', '-')}", str(v))]


def refusal(capsys, *arguments) -> str:
    """The one sentence of a command that is refused."""
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as left:
        code = left.code
    assert code == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert "Traceback" not in text
    return text


def test_a_run_by_flags_says_what_it_did(bundle, data, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--model", str(bundle), "--data", str(data), "--output", str(out)]
    assert main([*arguments, *flags(TINY)]) == 0
    shown = capsys.readouterr().out
    assert f"Written to {out}" in shown.replace("\n", "")
    assert re.search(r"step 4: loss \d+\.\d+, \d\.\d\d tokens per step, accepted by depth", shown)
    command = shlex.split(shown.strip().splitlines()[-1])
    assert command == ["python", "chat.py", "--model", str(bundle), "--drafter", str(out)]
    assert (out / "model.safetensors").is_file()


def test_yaml_gives_the_settings_and_flags_override_them(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "model: m\ndata: d\noutput: o\niters: 7\nlearning_rate: 3e-3\nepochs: null\n"
        "grad_accumulation_steps: 2\nrnn: false\nsave-every: 9\n"
    )
    values = vars(build_parser().parse_args(["--steps", "9", "--config", str(path)]))
    del values["config"]
    options = TrainingOptions.from_values({**read_config(path), **values})
    assert (options.steps, options.accumulate, options.save_every) == (9, 2, 9)
    assert options.learning_rate == pytest.approx(3e-3)
    assert options.rnn is False
    path.write_text("steps: 9\noverwrite: true\nseed: 4\n")
    values = vars(build_parser().parse_args(["--epochs", "2", "--resume"]))
    merged = train_cli._merged(read_config(path), values)
    mix = {"loss": "mix", "hard_weight": 0.3}
    assert train_cli._merged(mix, {"loss": "hard"}) == {"loss": "hard"}
    assert merged == {**merged, "epochs": 2.0, "resume": True, "seed": 4}
    assert not {"steps", "overwrite"} & set(merged)
    path.write_text("learning_rat: 1\n")
    with pytest.raises(RedrafterError, match="did you mean 'learning_rate'"):
        read_config(path)
    for text in ("steps: 9\niters: 7\n", "save-every: 1\nsave_every: 1\n"):
        path.write_text(text)
        with pytest.raises(
            RedrafterError, match=r"twice, under two names: leave (iters|save_every)"
        ):
            read_config(path)
    for text in ("a: 2026-99-99\n", "[" * 5000, "? [a]\n: 1\n", "!!python/object:os.x {}\n"):
        path.write_text(text)
        with pytest.raises(RedrafterError, match=str(path)):
            read_config(path)
    path.write_text("- a\n")
    with pytest.raises(RedrafterError, match="holds no settings"):
        read_config(path)
    path.write_text("a: [\n")
    with pytest.raises(RedrafterError, match="cannot be read"):
        read_config(path)


def test_a_setting_of_another_kind_is_refused_on_one_line():
    for option in fields(TrainingOptions):
        with pytest.raises(RedrafterError, match=f"{option.name} is array.* has to be") as error:
            TrainingOptions.from_values({option.name: np.zeros((40, 40))})
        assert "\n" not in str(error.value)


def test_every_setting_has_a_flag_that_gives_it():
    parser = build_parser()
    for option in fields(TrainingOptions):
        flag = "--" + option.name.replace("_", "-")
        kind = str(option.type).removesuffix(" | None")
        if kind == "bool":
            shown = f"--no-{flag[2:]}" if option.default else flag
            assert vars(parser.parse_args([shown])) == {"config": None} | {
                option.name: not option.default
            } or vars(parser.parse_args([shown])) == {option.name: not option.default}
        else:
            text = {"str": (option.metadata.get("choices") or ["x"])[0], "int": "3", "float": "0.5"}
            text["dict[str, Any]"] = "{}"
            assert option.name in vars(parser.parse_args([flag, text[kind]]))


def test_slips_are_told_in_one_sentence_before_anything_is_loaded(bundle, data, tmp_path, capsys):
    given = ("--model", bundle, "--data", data, "--output", tmp_path / "o")
    assert "--model" in refusal(capsys, "--data", data)
    assert "--data" in refusal(capsys, "--model", bundle)
    assert "pass --output" in refusal(capsys, "--model", "some/repo", "--data", data)
    assert "unroll is 0" in refusal(capsys, *given, "--unroll", 0)
    assert "choose one" in refusal(capsys, *given, "--steps", 2, "--epochs", 1)
    assert "whole number" in refusal(capsys, *given, "--steps", "many")
    assert "invalid choice" in refusal(capsys, *given, "--loss", "soft")
    assert "shared_rows" in refusal(capsys, *given, "--independent", "--shared-rows")
    assert "pass regenerate" in refusal(capsys, *given, "--regenerate-max-tokens", 64)
    assert "pass regenerate" in refusal(capsys, *given, "--regenerate-temperature", 1)
    assert "pass loss mix" in refusal(capsys, *given, "--hard-weight", 0.2)
    none = tmp_path / "none.yaml"
    assert f"{none} cannot be read: No such file or directory.\n" in refusal(
        capsys, "--config", none
    )
    assert "learning_rate is -1.0" in refusal(capsys, *given, "--learning-rate", -1)
    assert "beam length is 500" in refusal(capsys, *given, "--beam-length", 500)
    assert "beam width is 5000" in refusal(capsys, *given, "--beam-width", 5000)
    assert "seed is" in refusal(capsys, *given, "--seed", 2**63)
    assert not (tmp_path / "o").exists()
    loaded = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "mlx_redrafter.train", "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "--regenerate-temperature" in loaded.stdout
    assert "mlx_lm" not in loaded.stderr


def chat(content, calls=None):
    return [{"role": "user", "content": content, "tool_calls": calls}]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([], "is empty: write one"),
        ([{"question": "x"}], "record 1 has the keys ['question']"),
        ([{"text": "a"}], "a single record, and"),
        ([{"text": "a"}] * 30, "a single record (30 times), and"),
        ([{"text": 3}, {"text": "b"}], "'text' has to be a text"),
        ([{"text": "a"}, {"text": "b", "prompt_tokens": "7"}], "'prompt_tokens', how many tokens"),
        ([{"messages": "hi"}, {"text": "b"}], "'messages' has to be a list"),
        ([{"messages": [{"role": "user"}]}, {"text": "b"}], "'messages' has to be a list"),
        (
            [{"text": "a"}, {"messages": [{"role": 3, "content": "b"}]}],
            "record 2: message 1 has no",
        ),
        ([{"text": "a"}, {"messages": chat(3)}], "record 2: the content of message 1 is not text"),
        ([{"text": "a"}, {"messages": chat("b"), "tools": "f"}], "record 2: 'tools' has to be a"),
        ([{"text": "a"}, {"messages": chat("b", 3)}], "record 2: message 1 has tool_calls that"),
        ([{"prompt": "a"}, {"prompt": "b"}], "let the target answer with --regenerate"),
    ],
)
def test_bad_data_is_told_in_one_sentence(bundle, tmp_path, capsys, lines, told):
    path = write(tmp_path / "data.jsonl", lines)
    out = tmp_path / "o"
    assert told in refusal(capsys, "--model", bundle, "--data", path, "--output", out)
    assert not out.exists()


def test_an_empty_output_is_not_the_models_own_drafter(bundle, tmp_path, capsys):
    data = write(tmp_path / "data.jsonl", chats(6))
    given = ("--model", bundle, "--data", data, "--overwrite")
    for flag in ("output", "adapter-path", "start-from", "cache-features"):
        name = flag.replace("-", "_")
        assert f"{name} is empty: give it a value" in refusal(capsys, *given, f"--{flag}", "")


def test_data_that_is_not_there(tmp_path, capsys):
    given = ("--model", tmp_path, "--output", tmp_path / "o", "--data")
    assert "There is no ./none.jsonl" in refusal(capsys, *given, "./none.jsonl")
    assert "has no train.jsonl" in refusal(capsys, *given, tmp_path)


def test_a_directory_brings_its_own_held_out_records(tmp_path):
    write(tmp_path / "train.jsonl", chats(6))
    assert [len(part) for part in read_data(tmp_path, held_out=64)] == [5, 1]
    write(tmp_path / "valid.jsonl", chats(9)[6:])
    train, valid = read_data(tmp_path, held_out=2, max_records=4)
    assert train == chats(4)
    assert valid == chats(8)[6:]
    write(tmp_path / "valid.jsonl", [*chats(1), {"question": "x"}])
    with pytest.raises(RedrafterError, match=r"valid\.jsonl, record 2 has the keys \['question'\]"):
        read_data(tmp_path, held_out=64)


def test_a_dataset_of_the_hub_is_read_by_its_splits(monkeypatch):
    class Datasets:
        @staticmethod
        def load_dataset(name):
            if name != "owner/set":
                raise OSError("no such set")
            return {"train": chats(4), "valid": chats(6)[4:]}

    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    assert [len(part) for part in read_data("owner/set", held_out=64)] == [4, 2]
    with pytest.raises(RedrafterError, match=r"could not be fetched.*no such set"):
        read_data("owner/other", held_out=64)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RedrafterError, match="pip install datasets"):
        read_data("owner/set", held_out=64)


def test_what_is_there_twice_is_either_learnt_from_or_evaluated_on(tmp_path):
    rows = [{"text": f"the {i % 20}"} for i in range(60)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train, held = read_data(tmp_path / "data.jsonl", held_out=64)
    assert len(held) == 2
    assert len(train) == 54
    assert not any(record in train for record in held)


def test_keys_that_nothing_is_learned_from_make_no_other_record(tmp_path):
    """Records with a number of their own, and the two ways to write a question and its answer."""
    asked = [chats(20)[i % 20]["messages"] for i in range(60)]
    rows = [{"messages": messages, "id": i} for i, messages in enumerate(asked)]
    for row in rows[20:40]:
        (question, answer) = row.pop("messages")
        row |= {"prompt": question["content"], "completion": answer["content"]}
    rows += [{"text": f"the {i % 20}", "url": str(i)} for i in range(40)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train, held = read_data(tmp_path / "data.jsonl", held_out=64)
    assert len(held) == 4
    assert not {learned_from(r) for r in train} & {learned_from(r) for r in held}
    assert len({learned_from(r) for r in train}) == 36


class Press(train_screen.TrainingScreen):
    """Sends a signal once at a step, in the middle of what the run does there."""

    at = 5
    sent = signal.SIGINT

    def stage(self, name, done, total):
        if name == "training" and done == self.at:
            signal.raise_signal(self.sent)
        super().stage(name, done, total)


@pytest.mark.parametrize(("sent", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_saves_and_resume_goes_on_to_the_same_bits(
    bundle, data, tmp_path, capsys, monkeypatch, sent, code
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    given = ["--model", str(bundle), "--data", str(data), *flags(TINY)]
    assert main([*given, "--output", str(whole)]) == 0
    number = getattr(signal, sent)
    before = signal.getsignal(number)
    skip_if_ignored(number)
    monkeypatch.setattr(Press, "sent", number)
    with monkeypatch.context() as patch:
        patch.setattr(train_screen, "TrainingScreen", Press)
        assert ended(lambda: main([*given, "--output", str(parts)])) == code
    assert signal.getsignal(number) is before
    told = capsys.readouterr().err
    assert told == (
        "mlx_redrafter.train: interrupted at step 5 of 8; the same command with --resume goes on.\n"
    )
    assert "unfinished run" in refusal(capsys, *given, "--output", parts)
    assert main([*given, "--output", str(parts), "--resume"]) == 0
    assert weights(parts) == weights(whole)


def skip_if_ignored(number):
    """A signal that the tests' process ignores the training ignores, too."""
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("the tests run under nohup, and so would the training")


def ended(run):
    """The exit code, also of a run that a signal ends."""
    try:
        return run()
    except SystemExit as end:
        return end.code


def test_a_terminal_that_is_gone_takes_no_run_with_it(bundle, data, tmp_path, monkeypatch):
    """Nothing can be written to it any more, and the run is saved all the same."""
    skip_if_ignored(signal.SIGHUP)

    class Gone(Press):
        sent = signal.SIGHUP

        def stop(self, end):
            def fail(*_args, **_kwargs):
                raise OSError(errno.EIO, "Input/output error")

            self._console.print = self.move = self.__class__.__exit__ = fail
            super().stop(end)

    given = ["--model", str(bundle), "--data", str(data), *flags(TINY)]
    given += ["--output", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(train_screen, "TrainingScreen", Gone)
        assert ended(lambda: main(given)) == 129
    assert main([*given, "--resume"]) == 0


def test_an_overwriting_that_cannot_begin_costs_nothing(
    bundle, data, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "out"
    given = ["--model", str(bundle), *flags(TINY), "--output", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(train_screen, "TrainingScreen", Press)
        assert main([*given, "--data", str(data)]) == 130
    capsys.readouterr()
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert "There is no ./none.jsonl" in refusal(
        capsys, *given, "--data", "./none.jsonl", "--overwrite"
    )
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_a_second_ctrl_c_does_not_wait():
    screen = train_screen.TrainingScreen()
    with train_cli._saving_first(screen):
        signal.raise_signal(signal.SIGINT)
        assert screen.ending is not None
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_screen_hears_all_that_a_run_says():
    names = [name for name in vars(TrainingCallback) if not name.startswith("_")]
    assert names == ["note", "stage", "report"]
    assert set(names) <= set(vars(train_screen.TrainingScreen))


def test_the_documentation_has_every_flag():
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text("utf-8")
    for option in fields(TrainingOptions):
        for name in (option.name, *option.metadata.get("aliases", ())):
            assert f"--{name.replace('_', '-')}" in text, name


def test_the_documented_sizes_are_those_of_the_code():
    import numpy as np

    from mlx_redrafter.drafting.config import DrafterConfig
    from mlx_redrafter.drafting.kinds import drafter_of
    from mlx_redrafter.training.teacher import position_bytes

    hidden, rows = 24, 40
    for exit_dim, rnn, layers in ((24, True, 1), (48, False, 2)):
        config = DrafterConfig(hidden, rows, exit_dim, layers, rnn)
        found = sum(v.size for _, v in tree_flatten(drafter_of(config).parameters()))
        expected = 2 * hidden * exit_dim + exit_dim if exit_dim != 2 * hidden else 0
        expected += layers * (exit_dim**2 + exit_dim) + rows * exit_dim
        expected += 2 * hidden**2 + hidden if rnn else 0
        assert found == expected
    assert position_bytes(3072, 32, 16384, np.float16) == 2 * 3072 + 4 * 32 + 12
    assert position_bytes(3072, 32, 128256, np.float16) == 2 * 3072 + 6 * 32 + 12


def test_a_model_that_is_no_drafter_is_spared(data, tmp_path, capsys):
    bundle = make_bundle(tmp_path / "m", drafter=False)
    before = {p: p.read_bytes() for p in bundle.iterdir()}
    for more in ([], ["--overwrite"], ["--resume"]):
        told = refusal(capsys, "--model", bundle, "--data", data, "--output", bundle, *more)
        assert "holds a model that is no drafter (llama)" in told
    assert {p: p.read_bytes() for p in bundle.iterdir()} == before


def test_an_interrupted_overwriting_goes_on_without_it(bundle, data, tmp_path, capsys, monkeypatch):
    given = ["--model", str(bundle), "--data", str(data), *flags(TINY)]
    given += ["--output", str(tmp_path / "out")]
    monkeypatch.setattr(Press, "at", 1)
    with monkeypatch.context() as patch:
        patch.setattr(train_screen, "TrainingScreen", Press)
        assert main([*given, "--overwrite"]) == 130
    assert (
        "the same command with --resume instead of --overwrite goes on" in capsys.readouterr().err
    )
    assert main([*given, "--resume"]) == 0


@pytest.mark.parametrize(
    ("record", "key"),
    [
        ('{"text": "\\ud800 lone"}', "text"),
        ('{"prompt": "\\uDFFF x"}', "prompt"),
        ('{"prompt": "x", "completion": "y\\ud83d"}', "completion"),
        ('{"messages": [{"role": "user", "content": "\\ude00\\ud83d"}]}', "messages"),
        ('{"messages": [{"role": "user", "content": [{"type": "text", "text": "\\udc00"}]}]}',
         "messages"),
        ('{"text": "x", "tools": [{"\\udc00": 1}]}', "tools"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("regenerate", [False, True])
def test_halves_of_characters_are_told_with_their_line(
    bundle, tmp_path, capsys, record, key, regenerate
):
    path, out = write(tmp_path / "data.jsonl", chats()), tmp_path / "out"
    with path.open("a") as file:
        file.write("\n" + record + "\n")
    flags = ["--regenerate"] if regenerate else []
    text = refusal(capsys, "--model", bundle, "--data", path, "--output", out, *flags)
    assert f"{path}, line 8: '{key}' holds half a character (a lone surrogate) at position" in text
    assert not out.exists()


def test_whole_characters_may_be_written_in_halves(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "\\ud83d\\ude00"}\n{"text": "\\\\ud83d"}\n')
    texts = [record["text"] for record in read_data(path, held_out=1)[0]]
    assert texts in (["\U0001f600"], ["\\ud83d"])


def test_a_configuration_in_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # the shell leaves --config=~/... as it is
    (tmp_path / "drafter.yaml").write_text("steps: 7\n")
    assert read_config("~/drafter.yaml") == {"steps": 7}
