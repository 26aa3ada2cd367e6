"""Training runs from data to a drafter on disk: the function and what it leaves."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import shutil
import sys
from itertools import count
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from bundles import PROSE, make_bundle
from mlx.utils import tree_flatten
from training_files import TINY, chats, weights, write

from mlx_redrafter import Target, load
from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.system.disk import writing
from mlx_redrafter.text.drafter_files import load_drafter, load_recorded, save_drafter
from mlx_redrafter.training import (
    TrainingCallback,
    compute_features,
    train_drafter,
)
from mlx_redrafter.training import loop as loop_module
from mlx_redrafter.training import store as store_module


class Ears(TrainingCallback):
    """Notes everything; stops a run at a step."""

    def __init__(self, stop: int | None = None):
        self.notes: list[str] = []
        self.stages: list[tuple[str, int, int]] = []
        self.reports = []
        self._stop = stop

    def note(self, text):
        self.notes.append(text)

    def stage(self, name, done, total):
        self.stages.append((name, done, total))
        if name == "training" and done == self._stop:
            raise KeyboardInterrupt

    def report(self, progress):
        self.reports.append(progress)


def test_a_run_leaves_a_drafter_its_card_log_and_curves(bundle, data, tmp_path):
    ears = Ears()
    out = tmp_path / "drafter"
    report = train_drafter(bundle, data, out, callback=ears, **TINY)
    model, _ = load(bundle, drafter=out)
    assert model.drafter.config.exit_dim == 32
    assert sorted(p.name for p in out.iterdir()) == [
        "config.json", "model.safetensors", "recorded_drafts.json", "training", "training.json",
    ]  # fmt: skip
    assert model.recorded == load_recorded(out)
    assert model.recorded is not None
    assert {len(draft.tree.parents) for draft in model.recorded.drafts} == {1 + 4 * 15}
    assert sorted(p.name for p in (out / "training").iterdir()) == ["curves.png", "log.jsonl"]
    assert (out / "training" / "curves.png").read_bytes().startswith(b"\x89PNG")
    log = [json.loads(line) for line in (out / "training" / "log.jsonl").open()]
    assert [entry["step"] for entry in log] == list(range(1, 9))
    evaluated = {
        entry["step"]: entry["decoded"]["tokens_per_step"] for entry in log if "decoded" in entry
    }
    assert sorted(evaluated) == [4, 8]
    assert report.decoded.tokens_per_step == max(evaluated.values()) >= 1
    assert evaluated[report.best_step] == report.decoded.tokens_per_step
    card = json.loads((out / "training.json").read_text())
    assert card["figures"]["best_step"] == report.best_step
    assert card["options"]["steps"] == 8
    assert card["target"]["tokenizer_sha256"] == model.drafter.config.target["tokenizer_hash"]
    assert len(card["target"]["weights_sha256"]) == len(card["data_sha256"]) == 64
    assert "mlx" in card["versions"]
    assert {name for name, *_ in ears.stages} == {
        "target's features",
        "training",
        "evaluation",
        "held-out features",
        "recording drafts",
    }
    assert any("million parameters" in note for note in ears.notes)


def test_the_drafter_goes_into_a_local_bundle(data, tmp_path):
    bundle = make_bundle(tmp_path / "m", drafter=False)
    train_drafter(bundle, data, **(TINY | {"steps": 2}))
    model, _ = load(bundle)
    assert model.drafter is not None
    with pytest.raises(RedrafterError, match=r"holds a finished drafter.*--overwrite"):
        train_drafter(bundle, data, **TINY)
    before = weights(bundle / "drafter")
    train_drafter(bundle, data, overwrite=True, **(TINY | {"steps": 3}))
    assert weights(bundle / "drafter") != before


def logged(directory: Path) -> list[dict]:
    """The log, but for what a clock told."""
    lines = (directory / "training" / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k != "positions_per_second"} for x in lines]


@pytest.mark.parametrize("features", ["memory", "disk", "stream"])
def test_an_interrupted_run_goes_on_to_the_same_bits(bundle, data, tmp_path, features):
    settings = {**TINY, "features": features, "batch_size": 2}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_drafter(bundle, data, whole, **settings)
    for stop in (3, 4, 7):
        with pytest.raises(KeyboardInterrupt):
            train_drafter(bundle, data, parts, callback=Ears(stop), resume=stop > 3, **settings)
    with pytest.raises(RedrafterError, match="unfinished run: pass --resume"):
        train_drafter(bundle, data, parts, **settings)
    with pytest.raises(RedrafterError, match=r"other settings \(learning_rate\)"):
        train_drafter(bundle, data, parts, resume=True, learning_rate=0.5, **settings)
    # How often it saves changes nothing of what it learns.
    train_drafter(bundle, data, parts, resume=True, **{**settings, "save_every": 2})
    assert weights(parts) == weights(whole)
    assert logged(parts) == logged(whole)


def test_a_run_that_cannot_go_on_says_that_it_begins(bundle, data, tmp_path):
    class Notes(TrainingCallback):
        def __init__(self):
            self.notes = []

        def note(self, text):
            self.notes.append(text)

    told = f"{tmp_path / 'o'} has no unfinished run to go on with, so one begins."
    for resume in (True, False):
        ears = Notes()
        shutil.rmtree(tmp_path / "o", ignore_errors=True)
        train_drafter(bundle, data, tmp_path / "o", callback=ears, resume=resume, **TINY)
        assert (told in ears.notes) == resume


def test_an_interruption_in_an_evaluation_repeats_it(bundle, data, tmp_path):
    class Stop(Ears):
        def stage(self, name, done, total):
            if name == "evaluation":
                raise KeyboardInterrupt

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_drafter(bundle, data, whole, **TINY)
    with pytest.raises(KeyboardInterrupt):
        train_drafter(bundle, data, parts, callback=Stop(), **TINY)
    ears = Ears()
    train_drafter(bundle, data, parts, callback=ears, resume=True, **TINY)
    assert [r.step for r in ears.reports if r.decoded] == [4, 8]
    assert weights(parts) == weights(whole)


def test_an_interruption_between_an_evaluation_and_its_report_repeats_it(
    bundle, data, tmp_path, monkeypatch
):
    from mlx_redrafter.training import loop

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_drafter(bundle, data, whole, **TINY)
    real, seen = loop.ranks, []

    def pressed(*arguments):
        seen.append(1)
        if len(seen) == 4:  # the report of step 4, whose drafter was evaluated
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "ranks", pressed)
        with pytest.raises(KeyboardInterrupt):
            train_drafter(bundle, data, parts, **TINY)
    train_drafter(bundle, data, parts, resume=True, **TINY)
    assert weights(parts) == weights(whole)
    assert logged(parts) == logged(whole)


def test_features_on_disk_are_announced_checked_and_used_again(bundle, data, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    settings = {**TINY, "steps": 2, "cache_features": cache}
    ears = Ears()
    train_drafter(bundle, data, tmp_path / "a", callback=ears, **settings)
    shards = {p: p.stat().st_mtime_ns for p in cache.glob("*.safetensors")}
    size = sum(p.stat().st_size for p in shards)
    assert any("Features take" in note and "are free" in note for note in ears.notes)
    assert 0 < size < 100_000
    train_drafter(bundle, data, tmp_path / "b", **settings)
    assert {p: p.stat().st_mtime_ns for p in cache.glob("*.safetensors")} == shards
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    with pytest.raises(RedrafterError, match="made with another temperature"):
        train_drafter(bundle, data, tmp_path / "c", temperature=0.5, **settings)
    train_drafter(bundle, data, tmp_path / "c", temperature=0.5, overwrite=True, **settings)
    other = make_bundle(tmp_path / "other", drafter=False, seed=5)
    with pytest.raises(RedrafterError, match="made with another target"):
        train_drafter(other, data, tmp_path / "d", temperature=0.5, **settings)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(RedrafterError, match=r"features need .* [a-zA-Z]+ in .*stream"):
        train_drafter(
            bundle, data, tmp_path / "e", **(settings | {"cache_features": tmp_path / "n"})
        )


def test_a_file_where_features_should_go_is_told_before_the_answers(bundle, data, tmp_path):
    file, output = tmp_path / "file", tmp_path / "out"
    file.write_text("")
    with pytest.raises(RedrafterError, match=r"file cannot keep features \(Not a directory\)"):
        train_drafter(bundle, data, output, regenerate=True, cache_features=file, **TINY)
    assert not (output / "training" / "answers.jsonl").exists()


def test_a_directory_where_answers_should_go_is_a_sentence(bundle, data, tmp_path):
    (tmp_path / "training" / "answers.jsonl").mkdir(parents=True)
    with pytest.raises(RedrafterError, match=r"answers\.jsonl could not be written"):
        train_drafter(bundle, data, tmp_path, regenerate=True, **TINY)


def test_states_beyond_float16_can_be_streamed(bundle, data, tmp_path, monkeypatch):
    real = Target.teach

    def large(target, *arguments):
        logits, hidden = real(target, *arguments)
        return logits, hidden * 1e5

    monkeypatch.setattr(Target, "teach", large)
    settings = {**TINY, "steps": 1}
    with pytest.raises(RedrafterError, match=r"do not fit float16.*--features stream"):
        train_drafter(bundle, data, tmp_path / "out", **settings)
    train_drafter(bundle, data, tmp_path / "out", overwrite=True, features="stream", **settings)


def test_a_full_disk_ends_with_a_sentence_and_the_last_checkpoint(
    bundle, data, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    from mlx_redrafter.training import loop

    real, calls = loop.save_checkpoint, []

    def full(*arguments, **keywords):
        calls.append(1)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*arguments, **keywords)

    monkeypatch.setattr(loop, "save_checkpoint", full)
    with pytest.raises(RedrafterError, match=r"No space left.*last good checkpoint is of step 2"):
        train_drafter(bundle, data, out, **TINY)
    monkeypatch.undo()
    train_drafter(bundle, data, out, resume=True, **TINY)
    whole = tmp_path / "whole"
    train_drafter(bundle, data, whole, **TINY)
    assert weights(out) == weights(whole)


def test_divergence_ends_with_a_sentence_and_keeps_the_best(bundle, data, tmp_path, monkeypatch):
    out = tmp_path / "out"

    kept = []

    def watched(*arguments, **keywords):
        kept.append(compute_features(*arguments, **keywords))
        return kept[-1]

    class Spoil(Ears):
        def stage(self, name, done, total):
            if name == "training" and done == 4:  # the batch of step 5 is made ahead
                kept[0].hidden[:] = np.nan

    monkeypatch.setattr(store_module, "compute_features", watched)
    with pytest.raises(RedrafterError, match=r"diverged at step 6.*step 5.*best drafter.*step 4"):
        train_drafter(bundle, data, out, callback=Spoil(), **TINY)
    best = load_drafter(out / "training" / "best")
    assert all(mx.isfinite(v).all().item() for _, v in tree_flatten(best.parameters()))


def test_patience_ends_a_run_early_with_the_best_drafter(bundle, data, tmp_path):
    settings = {**TINY, "steps": 40, "eval_every": 1, "patience": 2, "learning_rate": 1e-9}
    report = train_drafter(bundle, data, tmp_path / "out", **settings)
    assert report.best_step == 1
    assert report.steps == 3


def test_the_target_answers_and_is_not_asked_twice(bundle, tmp_path):
    prompts = write(tmp_path / "p.jsonl", [{"prompt": w} for w in " ".join(PROSE).split()[:9]])
    with pytest.raises(RedrafterError, match=r"prompts but no answers.*--regenerate"):
        train_drafter(bundle, prompts, tmp_path / "out", **TINY)
    settings = {
        **TINY, "steps": 2, "regenerate": True, "regenerate_max_tokens": 8,
        "regenerate_batch_size": 2,
    }  # fmt: skip

    class Stop(Ears):
        def stage(self, name, done, total):
            super().stage(name, done, total)
            if name == "target's answers" and done == 5:
                raise KeyboardInterrupt

    out, whole = tmp_path / "out", tmp_path / "whole"
    with pytest.raises(KeyboardInterrupt):
        train_drafter(bundle, prompts, out, callback=Stop(), **settings)
    answers = out / "training" / "answers.jsonl"
    assert len(answers.read_text().splitlines()) == 5
    with answers.open("a") as file:
        file.write('{"messages": [')  # a line that was cut off
    ears = Ears()
    train_drafter(bundle, prompts, out, callback=ears, resume=True, **settings)
    assert next(done for name, done, _ in ears.stages if name == "target's answers") == 4
    train_drafter(bundle, prompts, whole, **settings)
    assert answers.read_text() == (whole / "training" / "answers.jsonl").read_text()
    assert weights(out) == weights(whole)
    rows = [json.loads(line) for line in answers.open()]
    assert len(rows) == 9
    assert all(row["messages"][-1]["role"] == "assistant" for row in rows)
    other = {**settings, "regenerate_max_tokens": 5}
    (whole / "model.safetensors").unlink()
    with pytest.raises(RedrafterError, match=r"answers.*another max_tokens"):
        train_drafter(bundle, prompts, whole, **other)


def test_nothing_is_answered_to_learn_from_that_is_evaluated_on(bundle, tmp_path):
    asked = [record["messages"][0]["content"] for record in chats(4)]
    rows = [{"prompt": q, "completion": a} for q in asked for a in ("the one", "the other")]
    ears = Ears()
    settings = {**TINY, "steps": 2, "regenerate": True, "regenerate_max_tokens": 8}
    data = write(tmp_path / "prompts.jsonl", rows)
    train_drafter(bundle, data, tmp_path / "out", callback=ears, **settings)
    answers = [json.loads(x) for x in (tmp_path / "out" / "training" / "answers.jsonl").open()]
    held, *learned = [row["messages"][0]["content"] for row in answers]
    assert learned == [question for question in asked for _ in "12" if question != held]
    assert "1 of the records ask what held-out ones ask, and are left out." in ears.notes


def test_texts_are_continued_by_the_target(bundle, tmp_path):
    texts = write(tmp_path / "t.jsonl", [{"text": " ".join(PROSE)[i:]} for i in range(6)])
    settings = {
        **TINY, "steps": 2, "regenerate": True, "regenerate_max_tokens": 6,
        "regenerate_prompt_tokens": 4,
    }  # fmt: skip
    train_drafter(bundle, texts, tmp_path / "out", **settings)
    _, tokenizer = load(bundle, drafter=False)
    rows = [json.loads(x) for x in (tmp_path / "out" / "training" / "answers.jsonl").open()]
    begun = {tokenizer.decode(tokenizer.encode(" ".join(PROSE)[i:])[:4]) for i in range(6)}
    for row in rows:
        assert row["prompt_tokens"] == 4
        beginning = next(b for b in begun if row["text"].startswith(b))
        begun.remove(beginning)
        assert len(row["text"]) > len(beginning)


def test_matplotlib_is_missed_with_a_note(bundle, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    ears = Ears()
    train_drafter(bundle, data, tmp_path / "out", callback=ears, **(TINY | {"steps": 2}))
    assert any("pip install matplotlib" in note for note in ears.notes)
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_errors_of_writing_are_sentences_and_others_stay_themselves(tmp_path):
    for error in (OSError(errno.ENOSPC, "No space left"), RuntimeError("[write] Unable to write")):
        with pytest.raises(RedrafterError, match="could not be written"), writing(tmp_path):
            raise error
    with pytest.raises(RuntimeError, match="shapes"), writing(tmp_path):
        raise RuntimeError("[matmul] shapes")


def test_a_run_goes_on_from_a_drafter_that_exists(bundle, data, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    train_drafter(bundle, data, first, dtype="float32", **TINY)
    shape = ("exit_dim", "num_draft_layers")
    settings = {k: v for k, v in TINY.items() if k not in shape}
    gentle = {**settings, "start_from": first, "learning_rate": 1e-12, "weight_decay": 0.0}
    train_drafter(bundle, data, second, dtype="float32", **gentle)
    begun, ended = load_drafter(first), load_drafter(second)
    assert ended.config == begun.config  # the run's own settings give no shape
    for name, value in tree_flatten(begun.parameters()):
        assert mx.allclose(value, dict(tree_flatten(ended.parameters()))[name], atol=1e-6), name
    card = json.loads((second / "training.json").read_text())
    sha256 = hashlib.sha256((first / "model.safetensors").read_bytes()).hexdigest()
    assert card["started_from"] == {"weights_sha256": sha256}
    assert card["options"]["start_from"] == str(first)


def test_a_drafter_learns_to_look_back(bundle, data, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    train_drafter(bundle, data, first, **TINY)
    settings = {k: v for k, v in TINY.items() if k not in ("exit_dim", "num_draft_layers")}
    train_drafter(bundle, data, second, start_from=first, lookback=3, **settings)
    assert load_drafter(first).config.lookback == 0
    assert load_drafter(second).config.lookback == 3
    third = tmp_path / "third"
    train_drafter(bundle, data, third, start_from=second, **settings)
    assert load_drafter(third).config.lookback == 3
    with pytest.raises(RedrafterError, match=r"read no tokens: leave out lookback"):
        train_drafter(bundle, data, tmp_path / "a", independent=True, lookback=3, **settings)
    with pytest.raises(RedrafterError, match=r"lookback is -1, .* a whole number from 0"):
        train_drafter(bundle, data, tmp_path / "b", lookback=-1, **TINY)
    heads = tmp_path / "heads"
    train_drafter(bundle, data, heads, independent=True, **settings)
    with pytest.raises(RedrafterError, match=r"has independent heads, which read no tokens"):
        train_drafter(bundle, data, tmp_path / "c", start_from=heads, lookback=3, **settings)


def test_what_cannot_be_gone_on_from_is_refused(bundle, data, tmp_path):
    settings = {k: v for k, v in TINY.items() if k not in ("exit_dim", "num_draft_layers")}
    with pytest.raises(RedrafterError, match=r"own shape: leave out exit_dim"):
        train_drafter(bundle, data, tmp_path / "a", start_from="d", exit_dim=32, **settings)
    with pytest.raises(RedrafterError, match=r"is not a drafter's directory"):
        train_drafter(bundle, data, tmp_path / "b", start_from=tmp_path, **settings)
    other = make_bundle(tmp_path / "other", seed=5)
    config = json.loads((other / "drafter" / "config.json").read_text())
    config["target"] = {"name": "another", "tokenizer_hash": "another"}
    (other / "drafter" / "config.json").write_text(json.dumps(config))
    with pytest.raises(RedrafterError, match=r"another vocabulary"):
        train_drafter(bundle, data, tmp_path / "c", start_from=other / "drafter", **settings)
    heads = tmp_path / "heads"
    train_drafter(bundle, data, heads, independent=True, **settings)
    with pytest.raises(RedrafterError, match=r"2 independent heads: pass --unroll 2 or less"):
        train_drafter(bundle, data, tmp_path / "d", start_from=heads, **settings | {"unroll": 3})


def test_a_quantised_drafter_is_not_gone_on_from(bundle, data, tmp_path):
    first, small = tmp_path / "first", tmp_path / "small"
    train_drafter(bundle, data, first, **TINY)
    drafter = load_drafter(first)
    nn.quantize(drafter, group_size=32, bits=8)
    packing = {"group_size": 32, "bits": 8}
    drafter.config = dataclasses.replace(drafter.config, quantization=packing)
    save_drafter(small, drafter)
    settings = {k: v for k, v in TINY.items() if k not in ("exit_dim", "num_draft_layers")}
    with pytest.raises(RedrafterError, match=r"quantised drafter, which cannot be trained"):
        train_drafter(bundle, data, tmp_path / "out", start_from=small, **settings)


def test_wrong_data_leaves_no_unfinished_run(bundle, tmp_path):
    directory = tmp_path / "data"
    write(directory / "train.jsonl", chats())
    write(directory / "valid.jsonl", [{"prompt": "the cat " * 99, "completion": "sat"}])
    out = tmp_path / "out"
    with pytest.raises(RedrafterError, match="held-out part of the data has answers only behind"):
        train_drafter(bundle, directory, out, **TINY)
    write(directory / "valid.jsonl", chats(2))
    train_drafter(bundle, directory, out, **TINY)
    assert (out / "model.safetensors").is_file()


def test_the_speed_is_that_of_the_steps(bundle, data, tmp_path, monkeypatch):
    """Neither evaluations nor an interruption count."""
    ticks = count(0.0, 1.0)
    monkeypatch.setattr(loop_module.time, "perf_counter", lambda: next(ticks))
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        train_drafter(bundle, data, out, callback=Ears(stop=3), **TINY | {"report_every": 2})
    train_drafter(bundle, data, out, resume=True, **TINY | {"report_every": 2})
    log = [json.loads(line) for line in (out / "training" / "log.jsonl").open()]
    assert [entry["step"] for entry in log] == [2, 4, 6, 8]
    assert {entry["positions_per_second"] for entry in log} == {16.0}


def test_an_error_of_the_program_leaves_no_unfinished_run(bundle, data, tmp_path, monkeypatch):
    """The next command, with other settings, is then not told to go on with this one."""

    def broken(*arguments, **more):
        raise TypeError("not what it takes")

    with monkeypatch.context() as patched:
        patched.setattr(store_module, "compute_features", broken)
        with pytest.raises(TypeError):
            train_drafter(bundle, data, tmp_path / "out", **TINY)
    train_drafter(bundle, data, tmp_path / "out", **TINY | {"steps": 2})


def test_another_target_is_refused_before_its_passes(bundle, tmp_path):
    out, data = tmp_path / "out", write(tmp_path / "data.jsonl", chats())
    with pytest.raises(KeyboardInterrupt):
        train_drafter(bundle, data, out, callback=Ears(stop=3), **TINY)
    other = make_bundle(tmp_path / "other", drafter=False, seed=5)
    ears = Ears()
    with pytest.raises(RedrafterError, match=r"with another target: use .* with --overwrite"):
        train_drafter(other, data, out, callback=ears, resume=True, **TINY)
    assert ears.stages == []
    write(data, chats(12))
    with pytest.raises(RedrafterError, match=r"another data, another held_out \(the files, or"):
        train_drafter(bundle, data, out, callback=ears, resume=True, **TINY)
    assert ears.stages == []
