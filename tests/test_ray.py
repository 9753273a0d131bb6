"""The Ray engine on a local Ray: the contract of engines, and the same journal whoever computes it and is lost."""

import importlib.util
import logging
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from peft import PeftModel

from tests.conftest import CONFIGS, REVIEWS, TARGETS, make_model
from tests.processes import Process
from tests.test_engine import (  # the contract: collected here, over the engine of this module
    INVOCATION,
    some_theta,
    test_generation_equals_peft_token_for_token,
    test_scores_equal_peft_on_the_exported_adapter,
    test_the_exported_adapter_reads_back_the_same_bits,
)
from zotune import Callback, mezo_finetune, resume
from zotune.adapter.peft_files import save_adapter
from zotune.adapter.spec import LoraSpec
from zotune.engine import ENGINES
from zotune.engine.kind import EngineRequest
from zotune.engine.ray.options import RayOptions
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.kind import TorchKind
from zotune.engine.torch.prefix_cache import PrefixCache
from zotune.run.journal import read_journal
from zotune.run.metrics import StepEvent
from zotune.zo.moves import Move
from zotune.zo.optimizers import OPTIMIZERS
from zotune.zo.protocol import AT_THETA, Example, Probe, Sampling, Scores
from zotune.zo.updates import Slope, Slopes

__all__ = [
    "test_generation_equals_peft_token_for_token",
    "test_scores_equal_peft_on_the_exported_adapter",
    "test_the_exported_adapter_reads_back_the_same_bits",
]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason='needs pip install "zotune[ray]"'),
]
BATCH = [Example((1, 9, 30 + n, 41, 7), INVOCATION, ((60,), (61,)), n % 2) for n in range(6)]
SETTINGS: dict[str, Any] = {
    "labels": ("terrible", "great"), "invocation": " It was", "num_steps": 5, "batch_size": 8, "directions": 3,
    "eval_steps": 5, "max_eval_samples": 8, "estimator": "one_sided", "init_lora_weights": "kaiming",
}  # fmt: skip


@pytest.fixture(scope="module")
def local_ray(quick_start: None) -> Iterator[Any]:
    """One Ray for all tests here."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # Ray's 15 is for workers that must not disturb
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20,
            logging_level=logging.ERROR,
        )  # fmt: skip
        yield ray
        ray.shutdown()


@pytest.fixture(scope="module")
def engine(local_ray: Any, opt_dir: Path) -> Iterator[Any]:
    """Two workers with the torch engine."""
    spec = LoraSpec(4, 8.0, TARGETS["opt"], INVOCATION)
    tables = {"ray": {"num_workers": 2, "pieces": 4}}
    made = ENGINES["ray"].open(EngineRequest(str(opt_dir), CONFIGS["opt"](), spec, "float32", "cpu", tables=tables))
    yield made
    made.close()


@pytest.fixture(scope="module")
def pair(engine: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """As in tests/test_engine.py: the engine, and its adapter in PEFT."""
    theta, folder = some_theta(engine), tmp_path_factory.mktemp("adapter")
    save_adapter(folder, theta, engine.spec, "none")
    return engine, theta, PeftModel.from_pretrained(make_model("opt"), folder).eval(), folder


@pytest.fixture(scope="module")
def alone() -> TorchEngine:
    return TorchEngine(make_model("opt"), LoraSpec(4, 8.0, TARGETS["opt"], INVOCATION), PrefixCache(1e8))


def pids(engine: Any) -> list[int]:
    return [member.about.pid for member in engine._crew.members if member.about]


# ---- the engine


def test_it_has_the_form_the_weights_and_the_obstacles_of_its_workers(engine, alone):
    assert engine.tensor_shapes == alone.tensor_shapes
    assert (engine.spec, engine.identity()) == (alone.spec, alone.identity())
    for need in ("scores", "generations", "gradients", "lens"):
        assert engine.why_not(need) == alone.why_not(need)


def test_texts_and_gradients_are_those_of_the_engine_alone(engine, alone):
    theta, probes = some_theta(alone), [AT_THETA, Probe(1, 0.5), Probe(2, 0.5)]
    sampling = Sampling(4, temperature=1.0, seed=3)
    assert engine.generate(theta, probes, BATCH, sampling) == alone.generate(theta, probes, BATCH, sampling)

    def cotangents(scores: Any) -> np.ndarray:
        found: np.ndarray = np.exp(scores.log_probs[0]) - 0.5
        return found

    scores, gradient = engine.gradient(theta, BATCH, cotangents)
    expected, whole = alone.gradient(theta, BATCH, cotangents)
    np.testing.assert_allclose(scores.log_probs, expected.log_probs, rtol=1e-5, atol=1e-5)
    for name, value in whole.items():  # a sum of float32 numbers in another order
        np.testing.assert_allclose(gradient[name], value, rtol=1e-4, atol=1e-5)


def test_derivatives_and_float32_are_passed_on(engine, alone):
    theta = some_theta(alone)
    probes = [Probe(seed, 0.0, derivative=True) for seed in (1, 2)]
    found, expected = engine.score(theta, probes, BATCH), alone.score(theta, probes, BATCH)
    np.testing.assert_allclose(found.tangents, expected.tangents, rtol=1e-4, atol=1e-5)
    assert engine.in_float32() is None  # it is of float32 already


def test_a_move_sends_no_tensor_and_is_made_everywhere(engine, alone):
    theta = some_theta(alone)
    optimizer = OPTIMIZERS["adam"]()
    state = optimizer.init(theta)
    engine.score(theta, [AT_THETA], BATCH)
    sizes = []
    for step in range(4):
        move = Move(optimizer, Slopes((Slope(step, 1.0), Slope(step + 7, -0.5))), 0.01)
        before = engine.traffic.wholes
        theta, state = engine.move(theta, state, move)
        found = engine.score(theta, [AT_THETA, Probe(step, 0.1)], BATCH)
        np.testing.assert_allclose(
            found.log_probs, alone.score(theta, [AT_THETA, Probe(step, 0.1)], BATCH).log_probs, rtol=1e-5, atol=1e-5
        )
        sizes.append(engine.traffic.wholes - before)
    assert sizes[-1] == 0


def test_a_worker_that_is_killed_or_stopped_changes_no_bit_and_comes_back(engine, alone, caplog):
    theta, probes = some_theta(alone), [AT_THETA, *(Probe(seed, 0.1) for seed in range(7))]
    expected = engine.score(theta, probes, BATCH).log_probs.tobytes()
    killed, stopped = pids(engine)
    os.kill(killed, signal.SIGKILL)
    with caplog.at_level(logging.WARNING, "zotune"):
        assert engine.score(theta, probes, BATCH).log_probs.tobytes() == expected
    assert "is lost" in caplog.text
    until = time.monotonic() + 90
    while len(engine._crew.at_work) < 2:
        assert engine.score(theta, probes, BATCH).log_probs.tobytes() == expected
        assert time.monotonic() < until
    os.kill(stopped, signal.SIGSTOP)
    try:
        for _ in range(3):
            assert engine.score(theta, probes, BATCH).log_probs.tobytes() == expected
    finally:
        os.kill(stopped, signal.SIGCONT)
    seats = engine._crew.seats
    assert sum(seat.lost for seat in seats) == sum(seat.rejoined for seat in seats) == 1
    assert sum(seat.late for seat in seats) >= 1


class UnlikeKind(TorchKind):
    """The engine that is opened first is torch's; the scores of the others are a little off, as on another processor.

    Args:
        opened: a folder that the first one makes.
    """

    def __init__(self, opened: Path) -> None:
        self.opened = opened

    def open(self, request: EngineRequest) -> Any:
        engine: Any = super().open(request)
        try:
            self.opened.mkdir()
        except FileExistsError:
            score = engine.score

            def off(*arguments: Any) -> Scores:
                scores = score(*arguments)
                return replace(scores, log_probs=scores.log_probs + np.float32(1e-3))

            engine.score = off
        return engine


@pytest.mark.parametrize(("unequal", "num_at_work"), [("refuse", 1), ("tolerate", 2)])
def test_a_worker_that_scores_otherwise_is_left_out_unless_it_is_tolerated(
    local_ray, engine, opt_dir, tmp_path, caplog, unequal, num_at_work
):
    from zotune.engine.ray.engine import RayEngine

    engine.close()  # its places are needed
    request = EngineRequest(str(opt_dir), CONFIGS["opt"](), engine.spec, "float32", "cpu")
    options = RayOptions(num_workers=2, unequal=unequal)
    unlike: Any = RayEngine(request, options, UnlikeKind(tmp_path / "opened"))
    with caplog.at_level(logging.WARNING, "zotune"):
        unlike.score(some_theta(unlike), [AT_THETA], BATCH)
    at_work = len(unlike._crew.at_work)
    unlike.close()
    (message,) = [text for text in caplog.messages if "scores otherwise" in text]
    machine = rf"\(.+, PyTorch {re.escape(torch.__version__)}\)"
    named = (
        rf"worker [01] on {re.escape(socket.gethostname())} {machine} scores otherwise than the first worker {machine}"
    )
    assert re.match(rf"{named}, by up to 0\.001: ", message)
    assert ("it is left out" in message, "who computes what" in message) == (unequal == "refuse", unequal == "tolerate")
    assert at_work == num_at_work


# ---- runs


class Disturbing(Callback):
    """Kills a worker after one step, and ends the run after another."""

    def __init__(self, kill_at: int, stop_at: int) -> None:
        self.kill_at, self.stop_at = kill_at, stop_at

    def on_train_begin(self, trainer: Any) -> None:
        self.engine = trainer.engine

    def on_step_end(self, event: StepEvent) -> None:
        if event.step == self.kill_at:
            os.kill(pids(self.engine)[0], signal.SIGKILL)
        if event.step == self.stop_at:
            raise KeyboardInterrupt


def journal(run: Path) -> Any:
    return read_journal(run / "journal.jsonl")[1]


def test_the_journal_is_the_same_for_any_workers_after_a_kill_and_a_resume(local_ray, engine, opt_dir, tmp_path):
    engine.close()  # its places are needed
    one, two = tmp_path / "one", tmp_path / "two"
    mezo_finetune(str(opt_dir), REVIEWS, engine="ray", ray={"num_workers": 1}, output_dir=str(one), **SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        mezo_finetune(
            str(opt_dir), REVIEWS, engine="ray", ray={"num_workers": 2}, output_dir=str(two),
            callbacks=[Disturbing(kill_at=1, stop_at=3)], **SETTINGS,
        )  # fmt: skip
    assert len(journal(two)) == 3
    resume(two)
    assert journal(two) == journal(one)
    weights = "adapter/adapter_model.safetensors"
    assert (one / weights).read_bytes() == (two / weights).read_bytes()


def test_with_one_piece_the_journal_is_that_of_the_engine_alone(local_ray, opt_dir, tmp_path):
    ray_run, torch_run = tmp_path / "ray", tmp_path / "torch"
    table = {"num_workers": 1, "pieces": 1}
    mezo_finetune(str(opt_dir), REVIEWS, engine="ray", ray=table, output_dir=str(ray_run), **SETTINGS)
    mezo_finetune(str(opt_dir), REVIEWS, num_threads=1, output_dir=str(torch_run), **SETTINGS)
    assert journal(ray_run) == journal(torch_run)


def test_nothing_is_left_running_when_the_driver_is_killed(quick_start, opt_dir, reviews_file, tmp_path):
    """A Ray of its own ends with it."""
    code = (
        "import sys\nfrom zotune import mezo_finetune\n"
        "mezo_finetune(sys.argv[1], sys.argv[2], labels=('terrible', 'great'), invocation=' It was', num_steps=10**6,\n"
        "    estimator='one_sided', init_lora_weights='kaiming', engine='ray', output_dir=sys.argv[3],\n"
        "    ray={'num_workers': 1, 'address': 'local'})\n"
    )
    driver = Process(opt_dir, reviews_file, tmp_path / "run", code=code)
    until = time.monotonic() + 150
    while not (tmp_path / "run" / "metrics.jsonl").is_file():
        assert driver.poll() is None, driver.stderr
        assert time.monotonic() < until, driver.stderr
        time.sleep(0.5)
    started = psutil.Process(driver.pid).children(recursive=True)
    assert len(started) > 2
    driver.kill()
    _, left = psutil.wait_procs(started, timeout=20)
    # Two helpers of Ray's try to report to what is gone, and end by themselves within two minutes.
    assert {process.name() for process in left} <= {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
    for process in left:
        process.kill()
