from __future__ import annotations

import json
from dataclasses import fields

import pytest

from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.sampling import SamplingConfig
from mlx_redrafter.system.own_models import pocket_path
from mlx_redrafter.ui.chat.options import build_parser, parse_chat_options
from mlx_redrafter.ui.chat.settings import ChatSettings
from mlx_redrafter.ui.parsing import OneSentenceParser


def parse(*arguments):
    return parse_chat_options(arguments)


def test_without_flags_the_pocket_and_the_defaults():
    options = parse()
    assert options.model == str(pocket_path())
    assert options.settings == ChatSettings()
    assert options.prompt is None


def test_flags_become_settings():
    options = parse(
        *("--model", "m", "--drafter", "d", "--temp", "0.7", "--top-p", "0.9", "--top-k", "40"),
        *("--min-p", "0.05", "--seed", "7", "--max-tokens", "99", "--system", "be brief"),
        *("--beam-width", "3", "--beam-length", "6", "--node-budget", "12", "--no-draft"),
    )
    assert (options.model, options.flags.drafter) == ("m", "d")
    assert options.settings == ChatSettings(
        SamplingConfig(temperature=0.7, top_p=0.9, top_k=40, min_p=0.05, seed=7), max_tokens=99,
        system="be brief",
        draft=False, beam_width=3, beam_length=6, node_budget=12,
    )  # fmt: skip


def test_mlx_lms_names_are_understood():
    template = ("--chat-template-config", '{"enable_thinking": false}')
    options = parse("--system-prompt", "hi", "-m", "5", *template)
    assert options.settings.chat_template_args == {"enable_thinking": False}
    assert options.settings.system == "hi"
    assert options.settings.max_tokens == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--temp", "hot"], "--temp"),
        (["--temp", "-1"], "0, or a finite number from 1e-37 is needed"),
        (["--temp", "inf"], "finite number"),
        (["--temp", "nan"], "finite number"),
        (["--top-p", "-0.1"], "finite number from 0 to 1"),
        (["--top-p", "1.5"], "finite number from 0 to 1"),
        (["--top-k", "-1"], "whole number from 0"),
        (["--top-k", "2.5"], "whole number"),
        (["--min-p", "2"], "from 0 to 1"),
        (["--seed", "-1"], "from 0 to 9223372036854775807"),
        (["--seed", str(2**63)], "to 9223372036854775807"),
        (["--max-tokens", "0"], "at least 1"),
        (["--beam-width", "0"], "at least 1"),
        (["--beam-width", "1025"], "at most 1024"),
        (["--beam-length", "65"], "at most 64"),
        (["--node-budget", "0"], "at least 1"),
        (["--json"], "needs --prompt"),
        (["--prompt", " "], "empty"),
        (["--prompt"], "expected one argument"),
        (["--modle", "x"], "--modle"),
        (["question"], "question"),
    ],
)
def test_what_cannot_be_is_told_in_one_line_with_code_2(arguments, words, capsys):
    with pytest.raises(SystemExit) as leaving:
        parse(*arguments)
    assert leaving.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert words in printed.err
    assert printed.err.count("\n") == 1


def test_a_missing_pocket_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("mlx_redrafter.ui.model_flags.pocket_path", lambda: tmp_path / "pocket")
    with pytest.raises(RedrafterError, match="--model"):
        parse()


def test_help_names_every_flag():
    text = build_parser().format_help()
    for flag in ("--model", "--drafter", "--temp", "--top-p", "--top-k", "--min-p", "--seed",
                 "--max-tokens", "--system", "--beam-width", "--beam-length", "--node-budget",
                 "--no-draft", "--prompt", "--json"):  # fmt: skip
        assert flag in text


def test_sampling_in_words():
    assert ChatSettings().sampling_words() == "greedy"
    config = SamplingConfig(temperature=0.7, top_p=0.9, top_k=5, min_p=0.1, seed=3)
    words = ChatSettings(config).sampling_words()
    assert words == "temperature 0.7, top-p 0.9, top-k 5, min-p 0.1, seed 3"
    words = ChatSettings(SamplingConfig(repetition_penalty=1.1)).sampling_words()
    assert words == "greedy, repetition-penalty 1.1"


def test_every_number_of_sampling_is_a_flag():
    values = build_parser().parse_args([])
    flags = {one.name for one in fields(SamplingConfig) if "range" in one.metadata} - {"logprobs"}
    assert flags <= set(vars(values))
    options = parse("--repetition-penalty", "1.2", "--xtc-probability", "0.5")
    assert options.settings.sampling == SamplingConfig(repetition_penalty=1.2, xtc_probability=0.5)


def test_processes_that_mlx_launch_started_do_not_wait_for_the_end_of_stdin(monkeypatch):
    monkeypatch.setattr("mlx_redrafter.system.rank_watch.current_ranks", object)
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(RedrafterError, match="never says that stdin has ended"):
        parse("--prompt", "-")


@pytest.mark.parametrize("name", ["add_generation_prompt", "tokenize", "chat_template"])
def test_what_the_program_sets_itself_is_no_argument_of_the_template(name, capsys):
    for flag in ("--chat-template-args", "--chat-template-config"):
        with pytest.raises(SystemExit) as caught:
            parse(flag, json.dumps({name: False}))
        assert caught.value.code == 2
        assert f"'{name}' is set by the program itself" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "begins"),
    [("python chat.py", "chat.py: "), ("python -m mlx_redrafter.plan", "mlx_redrafter.plan: ")],
)
def test_a_complaint_of_the_parsers_begins_as_all_others_do(command, begins, capsys):
    with pytest.raises(SystemExit):
        OneSentenceParser(command).error("a flag is wrong")
    assert capsys.readouterr().err == f"{begins}a flag is wrong (--help lists the flags)\n"
