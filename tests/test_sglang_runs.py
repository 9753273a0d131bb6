"""Runs on the SGLang engine: the torch engine's journal, also from a pool; killed, gone on with, and used."""

import importlib.util
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from tests.test_sglang import needs_sglang
from zotune import Callback, evaluate, mezo_finetune, predict, resume
from zotune.config.reading import read_toml, write_toml
from zotune.engine.sglang.engine import SglangEngine
from zotune.run.journal import read_journal

pytestmark = [pytest.mark.usefixtures("quick_start"), needs_sglang]

SETTINGS: dict[str, Any] = {
    "task": "demo", "batch_size": 4, "epsilon": 1e-2, "learning_rate": 1e-2, "lr_scheduler_type": "constant",
    "estimator": "spsa", "optimizer": "sgd", "directions": 2,
    "init_lora_weights": "kaiming",  # of principal components two engines may have either sign
}  # fmt: skip
DEFAULTS: dict[str, Any] = {"optimizer": None, "directions": None, "init_lora_weights": None}
OPTIONS = {"max_total_tokens": 2000, "max_loras_per_batch": 5}  # slots for four probes at a time, and the bare model


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, event):
        if event.step == self.step:
            raise KeyboardInterrupt


@dataclass(frozen=True)
class Trained:
    """A run, the options of SGLang that it had, and for how many steps it was to go on."""

    folder: Path
    options: dict[str, Any]
    num_steps: int

    @property
    def journal(self):
        return read_journal(self.folder / "journal.jsonl")

    @property
    def slopes(self):
        return [slope.value for entry in self.journal[1] for slope in entry.slopes]


@pytest.fixture(scope="module")
def few_processes():
    """Where it is used, who asks for an engine that is there already gets that one: its processes start only once."""
    engines: dict[str, Any] = {}

    def open_engine(*arguments, num_probes, options, **others):
        assert "max_loras_per_batch" in options  # so that the number of probes changes nothing
        key = repr((arguments, options, others))
        if key not in engines:
            engines[key] = SglangEngine(*arguments, num_probes=num_probes, options=options, **others)
            engines[key].close = lambda: None
        return engines[key]

    @contextmanager
    def patched():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("zotune.engine.sglang.engine.SglangEngine", open_engine)
            yield

    yield patched
    for engine in engines.values():
        SglangEngine.close(engine)


@pytest.fixture(scope="module")
def train(opt_dir, reviews_file, tmp_path_factory):
    """Runs of the same settings but for what is named, on the torch engine where no options of SGLang are given."""

    def run(options=None, num_steps=10, stop_at=None, **others):
        folder = tmp_path_factory.mktemp("runs") / "run"
        engine: dict[str, Any] = {"engine": "sglang", "sglang": options} if options else {}
        with nullcontext() if stop_at is None else pytest.raises(KeyboardInterrupt):
            mezo_finetune(
                str(opt_dir), str(reviews_file), **{**SETTINGS, **engine, **others}, num_steps=num_steps,
                output_dir=str(folder), callbacks=[] if stop_at is None else [StopAt(stop_at)],
            )  # fmt: skip
        return Trained(folder, options or {}, num_steps)

    return run


@pytest.fixture(scope="module")
def one_rank(train, few_processes):
    with few_processes():
        return train(OPTIONS)


@dataclass(frozen=True)
class Killed(Trained):
    """A run whose trainer was killed, and what the memory of its processes was mapped to before."""

    ranks: list[psutil.Process]
    maps: list[str]


@pytest.fixture(scope="module")
def two_ranks(opt_dir, reviews_file, tmp_path_factory):
    """Killed after some steps."""
    run, options, num_steps = tmp_path_factory.mktemp("killed") / "run", OPTIONS | {"tp_size": 2}, 400
    flags = [f"--{name}={value}" for name, value in SETTINGS.items()]
    flags += [f"--sglang.{name}={value}" for name, value in options.items()]
    command = [
        str(Path(sys.executable).parent / "zotune"), "train", "--engine", "sglang", "--model", str(opt_dir),
        "--train-data", str(reviews_file), "--num-steps", str(num_steps), "--output-dir", str(run), *flags,
    ]  # fmt: skip
    trainer = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal, deadline = run / "journal.jsonl", time.monotonic() + 240
    while not (journal.is_file() and journal.read_bytes().count(b"\n") > 10) and time.monotonic() < deadline:
        time.sleep(0.02)
    ranks = trainer.children()
    maps = [Path(f"/proc/{process.pid}/maps").read_text() for process in (trainer, *ranks)]
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    return Killed(run, options, num_steps, ranks, maps)


@pytest.mark.parametrize("trained", ["one_rank", "two_ranks"])
def test_a_run_has_the_torch_engines_journal_and_goes_on_there(trained, train, request, tmp_path):
    run = request.getfixturevalue(trained)
    other, others = run.journal
    assert 10 <= len(others) <= run.num_steps
    header, entries = train(num_steps=run.num_steps, stop_at=len(others)).journal
    assert header.changes(other) == []
    for one, two in zip(entries, others, strict=True):
        assert [slope.seed for slope in one.slopes] == [slope.seed for slope in two.slopes]
        assert two.loss == pytest.approx(one.loss, abs=1e-5)
        # losses to 1e-5, over twice the distance of 1e-2
        assert [s.value for s in two.slopes] == pytest.approx([s.value for s in one.slopes], abs=1e-3)
    shutil.copytree(run.folder, tmp_path / "run")
    config = read_toml(tmp_path / "run" / "config.toml")
    assert config.tables["sglang"] == run.options
    longer = replace(config, engine="torch", tables={}, num_steps=len(others) + 2)
    write_toml(longer, tmp_path / "run" / "config.toml")
    assert resume(tmp_path / "run").summary["steps"] == len(others) + 2


def test_a_run_of_one_sided_directions_lowers_the_loss(train):
    run = train(OPTIONS, num_steps=20, learning_rate=2e-2, estimator="one_sided", **DEFAULTS)
    header, entries = run.journal
    assert (header.optimizer["name"], len(entries[0].slopes)) == ("adam", 16)
    assert np.mean([entry.loss for entry in entries[-5:]]) < np.mean([entry.loss for entry in entries[:5]])


def test_a_run_of_the_default_method_the_lens_has_the_torch_engines_losses(train):
    method: dict[str, Any] = {"estimator": None, "learning_rate": 1e-3, **DEFAULTS}
    method |= {"target_modules": ("out_proj",)}  # of the torch engine's defaults, what SGLang's lens reaches
    here, there = train(num_steps=20, **method), train(OPTIONS, num_steps=20, **method)
    starts = [load_file(run.folder / "start.safetensors") for run in (here, there)]
    assert starts[0].keys() == starts[1].keys()
    for name, rows in starts[0].items():  # rows have either sign
        np.testing.assert_allclose(starts[1][name].T @ starts[1][name], rows.T @ rows, atol=2e-3)
    assert not there.slopes
    losses = [entry.loss for entry in there.journal[1]]
    # Adam's first steps divide by the root of the gradient's square, so that rounding errors of small numbers count.
    assert losses == pytest.approx([entry.loss for entry in here.journal[1]], abs=1e-3)
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_a_run_on_rewards_has_the_torch_engines_journal(train):
    method: dict[str, Any] = {
        "reward": ["length:12"], "estimator": "es", "optimizer": None, "max_new_tokens": 8, "stop_strings": [","],
        "temperature": 1.0, "num_generations": 2,
    }  # fmt: skip
    here, there = train(num_steps=3, **method), train(OPTIONS, num_steps=3, **method)
    assert any(here.slopes)
    assert there.slopes == pytest.approx(here.slopes)  # the same texts, since no two tokens are as likely as that
    assert (there.folder / "samples.jsonl").read_bytes() == (here.folder / "samples.jsonl").read_bytes()


def test_a_pool_of_engines_takes_the_probes_apart_and_writes_the_journal_of_one(train, one_rank):
    # Log-probabilities agree to 1e-6 or so; over 2 eps = 2e-2.
    np.testing.assert_allclose(train(OPTIONS | {"dp_size": 2}).slopes, one_rank.slopes, atol=2e-4)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason='needs pip install "zotune[ray]"')
def test_a_worker_of_ray_with_this_engine_has_its_journal(train, one_rank):
    there = train(OPTIONS, engine="ray", ray={"engine": "sglang", "num_workers": 1, "address": "local"})
    np.testing.assert_allclose(there.slopes, one_rank.slopes, atol=2e-4)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs Linux")
def test_a_killed_trainer_leaves_no_process_and_no_shared_memory(two_ranks):
    """Memory that they share has no name in /dev/shm, so that none can be left there."""
    assert len(two_ranks.ranks) == 2
    deadline = time.monotonic() + 20
    while (alive := [rank for rank in two_ranks.ranks if is_alive(rank)]) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not alive
    for text in two_ranks.maps:
        assert "memfd:zotune-theta" in text
        assert not [line for line in text.splitlines() if "/dev/shm/" in line and not line.endswith("(deleted)")]


def is_alive(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_run_killed_in_the_middle_goes_on_and_its_adapter_is_used(two_ranks, reviews_file, few_processes):
    run, (_, before) = two_ranks.folder, two_ranks.journal
    assert 10 <= len(before) < two_ranks.num_steps
    config = replace(read_toml(run / "config.toml"), num_steps=len(before) + 5, tables={"sglang": OPTIONS})
    write_toml(config, run / "config.toml")
    with few_processes():
        assert resume(run).summary["steps"] == len(before) + 5
    _, after = two_ranks.journal
    assert after[: len(before)] == before
    texts = ["a fine film", "not so good"]
    with few_processes():
        there = evaluate(str(reviews_file), adapter=run / "adapter")
        said = predict(texts, adapter=run / "adapter")
    here = evaluate(str(reviews_file), adapter=run / "adapter", engine="torch")
    assert there.predictions == here.predictions
    assert there.loss == pytest.approx(here.loss, abs=1e-5)
    assert said == predict(texts, adapter=run / "adapter", engine="torch")
