"""Runs: replayed, killed, resumed, stopped early, diverged. The same bits wherever they should be."""

import json
import math
import textwrap
import time
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import REVIEWS
from tests.processes import Process, run_to_end
from zotune import Callback, InputError, TrainingError, make_trainer, mezo_finetune, replay_run, resume
from zotune.adapter.peft_files import load_adapter
from zotune.config.reading import read_toml
from zotune.data.digest import examples_digest
from zotune.finetune import reopen
from zotune.run.journal import read_journal
from zotune.run.journal.lines import encode
from zotune.run.metrics import EvalEvent, read_metrics

pytestmark = pytest.mark.slow

STEPS = 12


class StopAt(Callback):
    """Ends a run after a step, as Ctrl-C would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, event) -> None:
        if event.step == self.step:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def options(opt_dir: Path, reviews_file: Path) -> dict:
    """A short run on the tiny OPT with everything that a resume must get right: schedule, momentum, early stopping."""
    return {
        "model": str(opt_dir), "train_data": str(reviews_file), "labels": ("terrible", "great"),
        "invocation": " It was", "num_steps": STEPS, "batch_size": 3, "directions": 2, "eval_steps": 3,
        "optimizer": "sgd", "learning_rate": 0.05, "sgd": {"momentum": 0.5}, "lr_scheduler_type": "cosine",
        "warmup_steps": 2,        "lora_rank": 2, "early_stopping_patience": 4, "num_threads": 1,
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole_run(options, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    mezo_finetune(**options, output_dir=str(folder))
    return folder


def durable(folder: Path) -> dict[str, object]:
    """What of a run folder must not depend on interruptions: all but times and counters; a resumed cache is cold."""
    files = ("journal.jsonl", "adapter/adapter_model.safetensors", "best/adapter_model.safetensors")
    summary = json.loads((folder / "summary.json").read_text())
    return {
        **{name: (folder / name).read_bytes() for name in files},
        "metrics": [
            (event.step, event.event, event.loss, getattr(event, "accuracy", None))
            for event in read_metrics(folder / "metrics.jsonl")
        ],
        **{name: summary[name] for name in ("initial", "best", "final", "steps", "seed")},
    }


def test_the_same_settings_give_the_same_bits_and_another_seed_others(options, whole_run, tmp_path):
    mezo_finetune(**options, output_dir=str(tmp_path / "again"))
    assert durable(tmp_path / "again") == durable(whole_run)
    mezo_finetune(**options, output_dir=str(tmp_path / "other"), seed=1)
    assert read_journal(tmp_path / "other" / "journal.jsonl")[1] != read_journal(whole_run / "journal.jsonl")[1]


@settings(max_examples=6)
@given(stops=st.sets(st.integers(1, STEPS - 1), min_size=1, max_size=3))
def test_a_run_stopped_anywhere_resumes_to_the_same_bits(options, whole_run, tmp_path_factory, stops):
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    first, *others = sorted(stops)
    with pytest.raises(KeyboardInterrupt):
        mezo_finetune(**options, output_dir=str(folder), callbacks=[StopAt(first)])
    for stop in others:
        with pytest.raises(KeyboardInterrupt):
            resume(folder, callbacks=[StopAt(stop)])
    resume(folder)
    assert durable(folder) == durable(whole_run)


def test_kill_9_at_any_moment_and_resume_gives_the_same_bits(options, tmp_path):
    """The real thing: processes of the command killed while they train, until one gets to the end."""
    config = {**options, "num_steps": 300, "eval_steps": 7, "learning_rate": 0.01, "early_stopping_patience": 40}
    config["sgd.momentum"] = config.pop("sgd")["momentum"]
    flags = [
        part
        for name, value in config.items()
        for part in ([f"--{name}", *value] if isinstance(value, tuple) else [f"--{name}={value}"])
    ]
    assert run_to_end("train", *flags, "--output-dir", tmp_path / "whole").returncode == 0
    command = ["train", *flags, "--output-dir", str(tmp_path / "killed")]
    journal = tmp_path / "killed" / "journal.jsonl"
    for kill_after in (4, 90, 180):
        process = Process(*command)
        while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > kill_after):
            time.sleep(0.001)
        assert process.poll() is None, "the run ended before it could be killed"
        process.kill()
        command = ["resume", str(tmp_path / "killed")]
    assert run_to_end(*command).returncode == 0
    assert durable(tmp_path / "killed") == durable(tmp_path / "whole")


def test_a_full_disk_ends_a_run_with_a_message_and_loses_no_step(options, whole_run, tmp_path):
    script = textwrap.dedent(f"""
        import resource, signal, sys
        from zotune import Callback, TrainingError, mezo_finetune
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        class FillDisk(Callback):
            def on_step_end(self, event):
                if event.step == 5:
                    size = ({str(tmp_path)!r} + "/run/journal.jsonl")
                    limit = __import__("os").path.getsize(size) + 10
                    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            mezo_finetune(**{options!r}, output_dir={str(tmp_path / "run")!r}, callbacks=[FillDisk()])
        except TrainingError as error:
            sys.exit(str(error))
    """)
    result = run_to_end(code=script)
    assert "cannot write" in result.stderr
    assert "kept up to step 5; make room and go on with: zotune resume" in result.stderr
    resume(tmp_path / "run")
    assert durable(tmp_path / "run") == durable(whole_run)


def test_replay_gives_the_live_theta_at_every_step(options, tmp_path):
    live = {}

    class Keep(Callback):
        def on_train_begin(self, trainer) -> None:
            self.trainer = trainer

        def on_step_end(self, event) -> None:
            live[event.step] = self.trainer.theta

    mezo_finetune(**options, output_dir=str(tmp_path / "run"), callbacks=[Keep()])
    for step, theta in live.items():
        replay_run(tmp_path / "run", tmp_path / f"at{step}", step)
        replayed, spec = load_adapter(tmp_path / f"at{step}")
        assert {name: replayed[name].tobytes() for name in theta} == {n: v.tobytes() for n, v in theta.items()}
    assert spec.invocation_tokens


def test_best_is_the_adapter_of_the_evaluation_with_the_lowest_loss(whole_run, tmp_path):
    events = [event for event in read_metrics(whole_run / "metrics.jsonl") if isinstance(event, EvalEvent)]
    best = min(events, key=lambda event: event.loss)
    replay_run(whole_run, tmp_path / "best", best.step)
    expected = (tmp_path / "best" / "adapter_model.safetensors").read_bytes()
    assert (whole_run / "best" / "adapter_model.safetensors").read_bytes() == expected
    summary = json.loads((whole_run / "summary.json").read_text())
    assert summary["best"]["loss"] == best.loss
    assert summary["initial"]["loss"] == events[0].loss
    assert summary["final"]["loss"] == events[-1].loss


@pytest.mark.parametrize("patience", [1, 2])
def test_early_stopping_ends_after_that_many_evaluations_without_a_lower_loss(options, tmp_path, patience):
    """At this learning rate the loss goes up and down, so that the run ends before its last step."""
    settings = {**options, "learning_rate": 0.5, "num_steps": 60, "early_stopping_patience": patience}
    mezo_finetune(**settings, output_dir=str(tmp_path / "run"))
    events = [e for e in read_metrics(tmp_path / "run" / "metrics.jsonl") if isinstance(e, EvalEvent)]
    losses = [event.loss for event in events]
    assert losses.index(min(losses)) == len(losses) - 1 - patience
    assert events[-1].step < 60


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        ({"scope": "activated"}, ("lens", "adam", None, 3e-3, "lora", "eva")),
        ({"scope": "everywhere"}, ("lens", "adam", None, 3e-3, "lora", "eva")),
        ({"optimizer": "sgd"}, ("one_sided", "sgd", 16, 2e-3, "lora_fa", "eva")),
        ({"tuning": "lora_fa"}, ("lens", "adam", None, 3e-3, "lora_fa", "eva")),
        ({"init_lora_weights": "kaiming"}, ("lens", "adam", None, 3e-3, "lora", "kaiming")),
        ({"estimator": "one_sided"}, ("one_sided", "adam", 16, 4e-3, "lora_fa", "eva")),
        ({"estimator": "one_sided", "scope": "everywhere"}, ("one_sided", "adam", 4, 4e-3, "lora", "kaiming")),
        ({"tuning": "vera"}, ("one_sided", "adam", 16, 4e-3, "vera", None)),
        ({"estimator": "spsa", "directions": 1, "scope": "everywhere"}, ("spsa", "adam", 1, 4e-3, "lora", "kaiming")),
        ({"tuning": "full"}, ("spsa", "sgd", 1, 1e-6, "full", None)),
    ],
)
def test_what_of_the_method_is_left_open_is_chosen_by_scope_and_kept(options, tmp_path, caplog, asked, chosen):
    own = {name: value for name, value in options.items() if name in ("model", "train_data", "labels", "invocation")}
    caplog.set_level("INFO", logger="zotune")
    with make_trainer(**own, **asked, num_steps=2, output_dir=str(tmp_path / "run")):
        config = read_toml(tmp_path / "run" / "config.toml")
    names = ("estimator", "optimizer", "directions", "learning_rate", "tuning", "init_lora_weights")
    open_ones = {name: value for name, value in zip(names, chosen, strict=True) if name not in asked and value}
    for name, value in open_ones.items():
        assert any(message.startswith(f"{name}: {value} (") for message in caplog.messages), name
    assert tuple(getattr(config, name) for name in names) == chosen
    assert config.lr_scheduler_type == "linear"


def test_a_diverging_run_stops_and_says_what_to_change(options, tmp_path):
    own = {name: options[name] for name in ("model", "train_data", "labels", "invocation", "batch_size")}
    with pytest.raises(TrainingError, match=r"lower --learning-rate \(its highest was 10000\)") as error:
        mezo_finetune(
            **own, tuning="full", learning_rate=1e4, lr_scheduler_type="constant", output_dir=str(tmp_path / "run")
        )
    _, entries = read_journal(tmp_path / "run" / "journal.jsonl")
    assert f"kept up to step {len(entries)}" in str(error.value)
    assert all(math.isfinite(slope.value) for entry in entries for slope in entry.slopes)


def test_a_run_whose_slopes_are_all_zero_stops_and_says_what_to_change(options, tmp_path):
    with pytest.raises(TrainingError, match=r"every slope was zero for 10 steps.*--epsilon"):
        mezo_finetune(
            **{**options, "epsilon": 1e-30, "early_stopping_patience": 9, "engine": "plain"},
            output_dir=str(tmp_path / "run"),
        )
    assert len(read_journal(tmp_path / "run" / "journal.jsonl")[1]) == 9


@pytest.mark.parametrize("batch_size", [3, 7, 35, 36])
def test_every_epoch_visits_every_example_once(options, tmp_path, batch_size):
    with make_trainer(**{**options, "batch_size": batch_size}, output_dir=str(tmp_path / "run")) as trainer:
        count = len(trainer.train_examples)
        assert count == 36  # a tenth of forty is held out
        visits = []
        for step in range(3 * count):
            trainer.step = step
            visits.extend(trainer._batch())
        for start in range(0, len(visits), count):
            assert Counter(visits[start : start + count]) == Counter(trainer.train_examples)


def test_records_in_memory_and_a_loaded_model_train_as_files_do_and_resume(options, whole_run, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(options["model"])
    tokenizer = AutoTokenizer.from_pretrained(options["model"])
    rest = {name: value for name, value in options.items() if name not in ("model", "train_data")}
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        mezo_finetune(model, REVIEWS, tokenizer=tokenizer, **rest, output_dir=str(run), callbacks=[StopAt(5)])
    resume(run)
    assert durable(run) == durable(whole_run)
    dataset = datasets.Dataset.from_list(REVIEWS)
    result = mezo_finetune(model, dataset, tokenizer=tokenizer, **rest, output_dir=str(tmp_path / "again"))
    assert durable(result.run_folder) == durable(whole_run)
    assert not any(module._forward_hooks for module in model.modules())


def test_resume_refuses_data_that_has_changed(options, tmp_path):
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(review) + "\n" for review in REVIEWS))
    with pytest.raises(KeyboardInterrupt):
        mezo_finetune(
            **{**options, "train_data": str(data)}, output_dir=str(tmp_path / "run"), callbacks=[StopAt(2)]
        )  # fmt: skip
    data.write_text(data.read_text().replace("sister", "brother"))
    with pytest.raises(InputError, match="was started with other training examples, evaluation examples"):
        resume(tmp_path / "run")


def test_resume_refuses_settings_that_would_replay_to_another_adapter(options, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        mezo_finetune(**options, output_dir=str(run), callbacks=[StopAt(2)])
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(
        config.replace("momentum = 0.5", "momentum = 0.6").replace("\nseed = 0", "\nseed = 1")
    )
    with pytest.raises(InputError, match="was started with other seed, lora, optimizer"):
        resume(run)


def test_a_run_of_before_there_were_other_optimizers_resumes(options, tmp_path):
    """Its journal and its config.toml lack what came later: noise, kinds of adapter, settings of other optimizers."""
    run, whole_run = tmp_path / "run", tmp_path / "whole"
    options = {**options, "tuning": "lora", "init_lora_weights": "kaiming"}
    mezo_finetune(**options, output_dir=str(whole_run))
    with pytest.raises(KeyboardInterrupt):
        mezo_finetune(**options, output_dir=str(run), callbacks=[StopAt(5)])
    with reopen(run) as trainer:
        examples = {"training": trainer.train_examples, "evaluation": trainer.eval_examples}
    first, *steps = map(json.loads, (run / "journal.jsonl").read_text().splitlines())
    first["data"] = {name: examples_digest(some, version=1) for name, some in examples.items()}
    for name in ("peft_type", "frozen_seed", "matrices", "start"):
        del first["lora"][name]
    for name in ("noise", "settings", "base_weights", "examples_version"):
        del first[name]
    first |= {"optimizer": {"name": "sgd", "momentum": 0.5, "weight_decay": 0.0}, "format": 1}
    for line in (first, *steps):
        del line["crc32"]
    (run / "journal.jsonl").write_bytes(b"".join(encode(line)[0] for line in (first, *steps)))
    lines = (run / "config.toml").read_text().splitlines(keepends=True)
    later = ("noise", "init_lora_weights")
    (run / "config.toml").write_text("".join(line for line in lines if not line.startswith(later)))
    resume(run)
    assert durable(run)["adapter/adapter_model.safetensors"] == durable(whole_run)["adapter/adapter_model.safetensors"]
    assert read_journal(run / "journal.jsonl")[1] == read_journal(whole_run / "journal.jsonl")[1]


def test_a_run_in_use_is_not_overwritten(options, tmp_path):
    run = tmp_path / "run"
    with make_trainer(**options, output_dir=str(run)), pytest.raises(InputError, match="in use"):
        mezo_finetune(**options, output_dir=str(run), overwrite=True)


def test_completion_and_plain_text_tasks_train_everywhere(options, tmp_path):
    settings = {**options, "labels": (), "invocation": None, "train_data": None, "num_steps": 2}
    pairs = [{"prompt": review["text"], "completion": " great"} for review in REVIEWS]
    texts = [{"text": review["text"]} for review in REVIEWS]
    for name, records in (("completion", pairs), ("lm", texts)):
        rest = {key: value for key, value in settings.items() if key != "train_data"}
        result = mezo_finetune(train_data=records, **rest, output_dir=str(tmp_path / name))
        assert result.summary["task"] == name
        assert result.final
        assert result.final.accuracy is None
        assert load_adapter(result.adapter)[1].scope == "everywhere"


def test_losses_of_plain_text_equal_those_of_transformers(options, tmp_path):
    texts = [{"text": review["text"]} for review in REVIEWS[:4]]
    rest = {key: options[key] for key in ("model", "num_threads", "lora_rank")}
    with make_trainer(
        train_data=texts, eval_data=texts, task="lm", **rest, num_steps=1, output_dir=str(tmp_path / "r")
    ) as trainer:
        measured = trainer.evaluate().loss
    model = AutoModelForCausalLM.from_pretrained(options["model"])
    tokenizer = AutoTokenizer.from_pretrained(options["model"])
    losses = []
    for text in texts:
        ids = torch.tensor([[*tokenizer(text["text"]).input_ids, tokenizer.eos_token_id]])
        with torch.no_grad():
            losses.append(float(model(ids, labels=ids).loss))  # the mean over all tokens but the first
    assert measured == pytest.approx(np.mean(losses), rel=1e-5)
