"""Whatever a file makes go wrong is one sentence: no traceback, no signal, no end of waiting."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bundles
import mlx.core as mx
import pytest
from damage import files_of
from mlx.utils import tree_flatten
from planning_machines import REAL, recorded_of
from refusals import refusal
from scripts import load_script

from mlx_redrafter.text import chat_template
from mlx_redrafter.text.chat_template import render
from mlx_redrafter.text.drafter_files import save_recorded
from mlx_redrafter.text.generate import generate
from mlx_redrafter.text.loading import load

# The whole of it: python experiments/damaged_files.py
FLIPS = 12


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    made = bundles.make_bundle(tmp_path / "tiny")
    save_recorded(made / "drafter", recorded_of(REAL, 6))
    return made


def test_damaged_files_are_refused_or_answer(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_script("damaged_files", monkeypatch)
    names = files_of(bundle)
    assert {"config.json", "tokenizer.json", "drafter/model.safetensors"} <= set(names)
    assert "drafter/recorded_drafts.json" in names
    assert script.faults_of(bundle, names, seed=7, flips=FLIPS, seconds=20, gigabytes=1) == []


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def rewrite(path: Path, name: str, change: Callable[[mx.array], mx.array]) -> None:
    weights = mx.load(str(path))
    weights[name] = change(weights[name])
    mx.save_safetensors(str(path), weights, {"format": "mlx"})


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("config.json", "num_hidden_layers", 10**9),
        ("config.json", "hidden_size", 2**40),
        ("config.json", "vocab_size", 10**12),
        ("drafter/config.json", "num_draft_layers", 10**9),
        ("drafter/config.json", "independent_heads", 10**9),
        ("drafter/config.json", "lookback", 10**9),
        ("drafter/config.json", "exit_dim", 2**31),
    ],
)
def test_impossible_counts_are_told_before_anything_is_built(
    bundle: Path, file: str, key: str, value: int
) -> None:
    change(bundle / file, **{key: value})
    assert key in refusal(lambda: load(bundle))


@pytest.mark.torch
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("value", ["float8", "torch.float16", []])
def test_a_type_that_no_weights_have_is_not_the_tokenizers_fault(
    bundle: Path, name: str, value: Any
) -> None:
    """Only with PyTorch does transformers look the type up."""
    pytest.importorskip("torch")
    values = json.loads((bundle / "config.json").read_text())
    values.pop("torch_dtype", None)
    (bundle / "config.json").write_text(json.dumps({**values, name: value}))
    told = refusal(lambda: load(bundle))
    assert f"config.json says {value!r} as {name}, which is no type of weights: write one" in told
    assert "float32, float16, bfloat16" in told


def test_an_adapters_rank_is_held_against_its_weights(bundle: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    mx.save_safetensors(
        str(adapter / "adapters.safetensors"), {"model.layers.0.x.lora_a": mx.zeros((32, 8))}
    )
    parameters = {"rank": 10**9, "scale": 1.0, "dropout": 0.0}
    values = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": parameters}
    (adapter / "adapter_config.json").write_text(json.dumps(values))
    assert "rank" in refusal(lambda: load(bundle, adapter_path=adapter))


@pytest.mark.parametrize("name", ["model.safetensors", "drafter/model.safetensors", "config.json"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    refusal(lambda: load(bundle))


def test_a_pipe_among_further_templates_is_not_waited_for(bundle: Path) -> None:
    (bundle / "additional_chat_templates").mkdir()
    os.mkfifo(bundle / "additional_chat_templates" / "tool_use.jinja")
    assert "tool_use.jinja" in refusal(lambda: load(bundle))


def test_a_tokenizer_of_gigabytes_is_not_read(bundle: Path) -> None:
    with (bundle / "tokenizer.json").open("r+b") as file:
        file.truncate(1 << 40)  # a hole, which takes no room on the disk
    assert "tokenizer.json" in refusal(lambda: load(bundle))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(bundle: Path, value: float) -> None:
    def spoil(weight: mx.array) -> mx.array:
        weight[3, 4] = value
        return weight

    rewrite(bundle / "model.safetensors", "model.layers.1.mlp.down_proj.weight", spoil)
    assert "model.layers.1.mlp.down_proj.weight" in refusal(lambda: load(bundle))


def test_a_drafters_weights_that_are_not_finite_are_named(bundle: Path) -> None:
    path = bundle / "drafter" / "model.safetensors"
    name = next(iter(mx.load(str(path))))
    rewrite(path, name, lambda weight: weight * mx.nan)
    assert name in refusal(lambda: load(bundle))


def test_a_configuration_that_makes_no_numbers_is_named(bundle: Path) -> None:
    change(bundle / "config.json", rope_theta=0)
    told = refusal(lambda: load(bundle))
    assert told.startswith(f"{bundle} computes logits that are not finite")
    assert "narrow" not in told


@pytest.mark.parametrize(
    "values", [{"exit_dim": -1.5}, {"model_type": "llama"}, {"target": {"tokenizer_hash": "0"}}]
)
def test_what_is_wrong_with_a_drafter_names_its_place(bundle: Path, values: Any) -> None:
    change(bundle / "drafter" / "config.json", **values)
    assert str(bundle / "drafter") in refusal(lambda: load(bundle))


@pytest.mark.parametrize("dtype", [mx.uint32, mx.int32, mx.int8])
def test_whole_numbers_as_weights_are_named(bundle: Path, dtype: mx.Dtype) -> None:
    rewrite(bundle / "model.safetensors", "model.norm.weight", lambda w: w.astype(dtype))
    assert "model.norm.weight" in refusal(lambda: load(bundle))


def test_what_is_read_lazily_is_not_looked_at(bundle: Path) -> None:
    rewrite(bundle / "model.safetensors", "model.norm.weight", lambda w: w * mx.nan)
    model, _ = load(bundle, lazy=True)
    assert dict(tree_flatten(model.target.model.parameters()))["model.norm.weight"].shape == (32,)


# A number that only running tells: 10 ** 9.
NUMBER = (
    "{% set n = namespace(n=messages|length) %}"
    "{% for i in range(9) %}{% set n.n = n.n * 10 %}{% endfor %}"
)
# A list that holds one twice, which holds one twice, ...
NESTED = (
    "{% set n = namespace(s=['x']) %}{% for i in range(99) %}{% set n.s = [n.s, n.s] %}{% endfor %}"
)
TEMPLATES = {
    "loops for ever": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
    "{% endfor %}",
    "writes megabytes": "{% for i in range(99999) %}{{ 'x' * 99 }}{% endfor %}",
    "doubles a text": "{% set n = namespace(s='x' * 99) %}{% for i in range(99) %}"
    "{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "doubles by a sum": "{% set n = namespace(s='x' * 99) %}{% for i in range(99) %}"
    "{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}",
    "doubles by a format": "{% set n = namespace(s='x' * 99) %}{% for i in range(99) %}"
    "{% set n.s = '%s%s' % (n.s, n.s) %}{% endfor %}{{ n.s }}",
    "doubles by fields": "{% set n = namespace(s='x' * 99) %}{% for i in range(99) %}"
    "{% set n.s = '{0}{0}{0}'.format(n.s) %}{% endfor %}{{ n.s }}",
    "doubles a part": "{% set n = namespace(s='x' * 99) %}{% for i in range(99) %}"
    "{% set s %}{{ n.s }}{{ n.s }}{% endset %}{% set n.s = s %}{% endfor %}{{ n.s }}",
    "doubles by a macro": "{% macro f(s) %}{{ s }}{{ s }}{% endmacro %}"
    "{% set n = namespace(s='x' * 99) %}{% for i in range(99) %}"
    "{% set n.s = f(n.s) %}{% endfor %}{{ n.s }}",
    "doubles a list": "{% set n = namespace(s=['x']) %}{% for i in range(99) %}"
    "{% set n.s = n.s + n.s %}{% endfor %}{{ n.s|length }}",
    "nests a list": NESTED + "{{ n.s }}",
    "nests a list for JSON": NESTED + "{{ n.s|tojson }}",
    "nests a list for a text": NESTED + "{% set t = n.s|string %}",
    "nests a list behind a text": NESTED + "{% set t = 'x' ~ n.s %}",
    "compares nested lists": NESTED
    + NESTED.replace("n.s", "m.s").replace("set n ", "set m ")
    + "{{ n.s == m.s }}",
    "nests a mapping": "{% set n = namespace(s={}) %}{% for i in range(99) %}"
    "{% set n.s = {'a': n.s, 'b': n.s} %}{% endfor %}{{ n.s }}",
    "nests a key": "{% set n = namespace(s=('x', 'y')) %}{% for i in range(99) %}"
    "{% set n.s = (n.s, n.s) %}{% endfor %}{{ {n.s: 1}|length }}",
    "adds nested lists": NESTED.replace("99", "18") + "{% for i in range(20) %}"
    "{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}",
    "multiplies a text": "{{ 'x' * 1000000000000 }}",
    "raises to a power": "{{ 10 ** 100000000 }}",
    "multiplies by a number of its own": NUMBER + "{{ 'x' * n.n }}",
    "multiplies by its length": "{% set s = 'x' * 99999 %}{{ (s * s|length)|length }}",
    "multiplies a list": NUMBER + "{{ ([1] * n.n)|length }}",
    "multiplies from the left": NUMBER + "{{ n.n * 'x' }}",
    "multiplies constants": "{{ 'x' * 31623 * 31623 }}",
    "squares a number": NUMBER + "{% for i in range(99) %}{% set n.n = n.n * n.n %}{% endfor %}",
    "centres a text": NUMBER + "{{ 'x'|center(n.n) }}",
    "centres a constant": "{{ ' '|center(99999)|replace(' ', 'y'|center(99999)) }}",
    "calls a method": NUMBER + "{{ 'x'.ljust(n.n) }}{{ 'x'.zfill(width=n.n) }}",
    "formats by a width": "{{ '%999999999d' % messages|length }}",
    "formats by a width of its own": NUMBER + "{{ '%*d' % (n.n, 1) }}",
    "formats by fields": "{{ '{:>999999999}'.format(messages|length) }}",
    "formats by fields of its own": NUMBER + "{{ '{:>{w}}'.format('x', w=n.n) }}",
    "formats by a filter": NUMBER + "{{ '%*d'|format(n.n, 1) }}",
    "replaces each by many": "{% set s = 'x' * 99999 %}{{ s.replace('x', s)|length }}",
    "replaces by a filter": "{% set s = 'x' * 99999 %}{{ s|replace('x', s)|length }}",
    "joins with many": "{% set s = 'x' * 99999 %}{{ s.join(range(9999)|map('string')|list) }}",
    "joins by a filter": "{% set s = 'x' * 99999 %}{{ range(99999)|list|join(s) }}",
    "indents": NUMBER + "{{ messages|tojson(indent=n.n) }}{{ 'a\nb'|indent(n.n) }}",
    "fills batches": NUMBER + "{{ [1]|batch(n.n, 0)|list|length }}",
    "expands tabs": NUMBER + "{{ ('\t' * 9).expandtabs(n.n) }}",
    "centres many": "{{ range(9999)|map('center', 999999)|list|length }}",
    "writes dummy text": NUMBER + "{{ lipsum(n=n.n) }}",
    "never returns": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "reaches for Python": "{{ ''.__class__.__mro__ }}",
    "is no template": "{% for",
}


# What no single operation makes. A process of its own: memory is looked at beside the largest that
# a process ever took, and other tests take much. A shell stands between, since that figure of the
# parent's is handed on.
GROWS = """
import sys, threading
from mlx_redrafter import generate, load
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.text import chat_template

chat_template.SECONDS, chat_template.MEMORY_BYTES_BESIDE_OTHERS = 600, 1 << 26
model, tokenizer = load(sys.argv[1], drafter=False)
tokenizer.chat_template = (
    "{% set n = namespace(l=[]) %}{% for i in range(999) %}"
    "{% set n.l = n.l + range(99999)|list %}{% endfor %}"
)
done = threading.Event()
threading.Thread(target=done.wait).start()
try:
    generate(model, tokenizer, [{"role": "user", "content": "hello"}], max_tokens=2)
except RedrafterError as error:
    print(error)
finally:
    done.set()
"""


def test_a_template_is_stopped_beside_other_threads(bundle: Path) -> None:
    command = ["sh", "-c", '"$0" "$@"; exit $?', sys.executable, "-c", GROWS, str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "had taken 64 MiB of memory" in done.stdout


@pytest.mark.parametrize("what", TEMPLATES)
def test_a_template_is_stopped(bundle: Path, what: str) -> None:
    model, tokenizer = load(bundle, drafter=False)
    tokenizer.chat_template = TEMPLATES[what]
    messages = [{"role": "user", "content": "hello"}]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "template" in refusal(lambda: generate(model, tokenizer, messages, max_tokens=2))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 1_600_000 * (1 if sys.platform == "linux" else 1024)


def test_what_templates_do_is_let_through(bundle: Path) -> None:
    _, tokenizer = load(bundle, drafter=False)
    messages = [{"role": "user", "content": "a long text, " * 9999}]
    tokenizer.chat_template = (
        "{% set line = '-' * 40 %}{{ line }}{{ '%02d' % 7 }}{{ '{:>5}'.format(7) }}"
        "{{ 3 * 4 }}{{ 1700000000|string }}{{ missing|default(1700000000) }}{{ 7 % 2 }}"
        "{% for m in messages %}{{ m.content.replace('a', 'aa')|trim }}{{ ' ' * loop.index }}"
        "{{ [m.role, m.role]|join(', ') }}{{ m|tojson(indent=4)|length }}"
        "{{ m.role.center(20) }}{{ m.role|indent(8) }}{% endfor %}"
    )
    made = render(tokenizer, messages)
    assert isinstance(made, str)
    said = ("a long text, " * 9999).replace("a", "aa").strip()
    head = "-" * 40 + "07" + "    7" + "12" + "1700000000" * 2 + "1"
    length = len(json.dumps(messages[0], indent=4))
    tail = " user, user" + str(length) + "user".center(20) + "user"
    assert made == head + said + tail


def test_templates_of_several_threads_do_not_count_each_others_time(bundle: Path) -> None:
    _, tokenizer = load(bundle, drafter=False)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content|trim }}{% endfor %}"
    messages = [{"role": "user", "content": "hello"}] * 200
    end = time.thread_time() + chat_template.SECONDS
    while time.thread_time() < end:  # this thread is older than the others may become
        pass
    want = render(tokenizer, messages)
    with ThreadPoolExecutor(3) as pool:
        made = [pool.submit(render, tokenizer, messages) for _ in range(30)]
        assert {one.result() for one in made} | {render(tokenizer, messages)} == {want}
    # Rendered past these bounds, it is as it was.
    assert tokenizer.apply_chat_template(messages, tokenize=False) == want
