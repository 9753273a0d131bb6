"""Runs that learn by gradients are kept in checkpoints: whole, of this run, and enough to go on to the bit."""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from tests.processes import Process, run_to_end
from tests.test_train import StopAt, durable
from zotune import Callback, InputError, mezo_finetune, replay_run, resume
from zotune.adapter.forms import lora_matrices
from zotune.adapter.peft_files import load_adapter
from zotune.finetune import reopen
from zotune.run.checkpoint import Checkpoint, checkpoint_steps, nearest, read_checkpoint, write_checkpoint
from zotune.run.folder import RunFolder
from zotune.run.journal import Checkpointed, read_journal
from zotune.zo.digest import digest

THETA: dict[str, np.ndarray] = {
    "b": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
    "a": np.array([np.pi], dtype=np.float32),
}
STATE: dict[str, np.ndarray] = {"m/b": np.full((2, 3), 1e-30, dtype=np.float32), "steps": np.array(7, dtype=np.int64)}


def bits(tensors) -> dict[str, tuple]:
    return {name: (value.dtype.str, value.shape, value.tobytes()) for name, value in tensors.items()}


# ---- the files


def test_what_is_written_reads_back_to_the_bit(tmp_path):
    write_checkpoint(tmp_path / "checkpoints", 7, THETA, STATE)
    read = read_checkpoint(tmp_path / "checkpoints", 7, digest(THETA))
    assert (read.step, bits(read.theta), bits(read.state)) == (7, bits(THETA), bits(STATE))


def test_a_digest_tells_names_types_shapes_and_bytes_apart_and_knows_no_order():
    others: list[dict[str, np.ndarray]] = [
        {"b": THETA["b"], "c": THETA["a"]}, {"b": THETA["b"].reshape(3, 2), "a": THETA["a"]},
        {"b": THETA["b"].view(np.int32), "a": THETA["a"]}, {"b": np.nextafter(THETA["b"], 2), "a": THETA["a"]},
        {"b": THETA["b"]}, {},
    ]  # fmt: skip
    assert len({digest(tensors) for tensors in (THETA, *others)}) == 7
    assert digest({name: THETA[name] for name in ("a", "b")}) == digest(THETA)
    assert digest({"b": np.asfortranarray(THETA["b"]), "a": THETA["a"]}) == digest(THETA)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def cut_in_the_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_in_theta(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def flip_in_the_header(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"theta/a", b"theta/c"))


def no_file(path: Path) -> None:
    path.unlink()
    path.mkdir()


def another_steps(path: Path) -> None:
    shutil.copy(path.with_name("step-000003.safetensors"), path)


def another_runs(path: Path) -> None:
    write_checkpoint(path.parent, 7, {**THETA, "a": np.array([3], dtype=np.float32)}, STATE)


def not_ours(path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"theta/a": THETA["a"]}, path)


DAMAGES = [cut_short, cut_in_the_header, empty, flip_in_theta, flip_in_the_header, no_file, another_steps,
           another_runs, not_ours]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_what_is_damaged_or_another_runs_is_refused_by_name_and_the_one_before_taken(tmp_path, caplog, damage):
    early = {**THETA, "a": np.array([1], dtype=np.float32)}
    write_checkpoint(tmp_path, 3, early, STATE)
    write_checkpoint(tmp_path, 7, THETA, STATE)
    digests = {3: digest(early), 7: digest(THETA)}
    path = tmp_path / "step-000007.safetensors"
    damage(path)
    with pytest.raises(InputError) as error:
        read_checkpoint(tmp_path, 7, digests[7])
    assert str(path) in str(error.value)
    found = nearest(tmp_path, 9, digests)
    assert isinstance(found, Checkpoint)
    assert (found.step, bits(found.theta)) == (3, bits(early))
    assert f"{path} is " in caplog.text
    assert "taking the checkpoint before it" in caplog.text


def test_only_checkpoints_up_to_the_step_count(tmp_path):
    for step in (3, 7):
        write_checkpoint(tmp_path, step, THETA, STATE)
    (tmp_path / "step-000009.safetensors.new").write_text("torn")
    assert checkpoint_steps(tmp_path) == [3, 7]
    found = [nearest(tmp_path, step, {}) for step in (2, 3, 6, 7, 8)]
    assert [one and one.step for one in found] == [None, 3, 3, 7, 7]
    assert nearest(tmp_path / "none", 9, {}) is None


# ---- runs

STEPS = 12


@pytest.fixture(scope="module")
def options(opt_dir: Path, reviews_file: Path) -> dict:
    """A run with checkpoints after steps 3, 6, 9 and 12, and an optimizer with a state."""
    return {
        "model": str(opt_dir), "train_data": str(reviews_file), "labels": ("terrible", "great"),
        "invocation": " It was", "num_steps": STEPS, "batch_size": 3, "eval_steps": 3, "estimator": "backprop",
        "optimizer": "adam", "learning_rate": 0.01, "lr_scheduler_type": "cosine", "warmup_steps": 2, "lora_rank": 2,
        "num_threads": 1,
    }  # fmt: skip


class Kept(Callback):
    """Theta after every step, as the run had it."""

    def __init__(self) -> None:
        self.thetas: dict[int, dict] = {}

    def on_train_begin(self, trainer) -> None:
        self.trainer = trainer

    def on_step_end(self, event) -> None:
        self.thetas[event.step] = bits(lora_matrices(self.trainer.theta, self.trainer.export.save.keywords["spec"]))


@pytest.fixture(scope="module")
def kept() -> Kept:
    return Kept()


@pytest.fixture(scope="module")
def whole_run(options, kept, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    mezo_finetune(**options, output_dir=str(folder), callbacks=[kept])
    return folder


@pytest.fixture
def stopped(options, tmp_path) -> Path:
    """A run stopped after step 8; its last checkpoint is of step 6."""
    with pytest.raises(KeyboardInterrupt):
        mezo_finetune(**options, output_dir=str(tmp_path / "run"), callbacks=[StopAt(8)])
    assert checkpoint_steps(tmp_path / "run" / "checkpoints")[-1] == 6
    return tmp_path / "run"


def test_checkpoints_are_those_that_the_journal_names(whole_run):
    _, entries = read_journal(whole_run / "journal.jsonl")
    checkpoints = RunFolder(whole_run).checkpoints
    assert checkpoint_steps(checkpoints) == [3, 6, 9, 12]
    for step in (3, 6, 9, 12):
        update = entries[step - 1].update
        assert isinstance(update, Checkpointed)
        assert digest(read_checkpoint(checkpoints, step, update.theta_digest).theta) == update.theta_digest


def flags(options: dict) -> list[str]:
    return [part for name, value in options.items()
            for part in ([f"--{name}", *value] if isinstance(value, tuple) else [f"--{name}={value}"])]  # fmt: skip


def kill_after(command: list[str], journal: Path, steps: int) -> None:
    process = Process(*command)
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > steps):
        time.sleep(0.001)
    assert process.poll() is None, "the run ended before it could be killed"
    process.kill()


@pytest.mark.slow
def test_kill_9_between_checkpoints_and_resume_gives_the_same_bits(options, tmp_path):
    config = {**options, "num_steps": 400, "eval_steps": 50}
    whole, run = tmp_path / "whole", tmp_path / "killed"
    mezo_finetune(**config, output_dir=str(whole))
    kill_after(["train", *flags(config), "--output-dir", str(run)], run / "journal.jsonl", 70)
    kill_after(["resume", str(run)], run / "journal.jsonl", 170)
    assert checkpoint_steps(run / "checkpoints")[-1] < len(read_journal(run / "journal.jsonl")[1])
    done = run_to_end("resume", run)
    assert done.returncode == 0
    assert "resuming" in done.stderr
    assert durable(run) == durable(whole)


def test_a_resume_computes_the_steps_after_the_last_checkpoint_again(stopped, whole_run):
    with reopen(stopped) as trainer:
        assert trainer.step == 6
        assert not trainer.estimator.seeded
    resume(stopped)
    assert durable(stopped) == durable(whole_run)


@pytest.mark.parametrize("damage", [Path.unlink, cut_short, flip_in_theta, another_steps])
@pytest.mark.slow
def test_a_resume_whose_last_checkpoint_is_lost_goes_on_from_the_one_before(stopped, whole_run, damage):
    damage(stopped / "checkpoints" / "step-000006.safetensors")
    with reopen(stopped) as trainer:
        assert trainer.step == 3
    resume(stopped)
    assert durable(stopped) == durable(whole_run)


def test_a_resume_without_any_checkpoint_begins_again(stopped, whole_run):
    shutil.rmtree(stopped / "checkpoints")
    resume(stopped)
    assert durable(stopped) == durable(whole_run)


def test_checkpoints_of_another_run_are_not_taken(options, stopped, whole_run, tmp_path, caplog):
    mezo_finetune(**options, output_dir=str(tmp_path / "other"), seed=1)
    shutil.rmtree(stopped / "checkpoints")
    shutil.copytree(tmp_path / "other" / "checkpoints", stopped / "checkpoints")
    resume(stopped)
    assert "is another run's" in caplog.text
    assert durable(stopped) == durable(whole_run)


def test_such_a_run_never_goes_on_by_another_method(stopped):
    config, journal = stopped / "config.toml", (stopped / "journal.jsonl").read_bytes()
    text = config.read_text()
    without = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("estimator"))
    for changed in (without, *(text.replace('"backprop"', f'"{name}"') for name in ("spsa", "jvp", "svrg", "fzoo"))):
        config.write_text(changed)
        with pytest.raises(InputError, match=r"was started with other .*estimator"):
            resume(stopped)
        assert (stopped / "journal.jsonl").read_bytes() == journal


def test_a_run_by_slopes_never_goes_on_by_backpropagation(options, tmp_path):
    options = {**options, "estimator": "spsa"}
    with pytest.raises(KeyboardInterrupt):
        mezo_finetune(**options, output_dir=str(tmp_path / "run"), callbacks=[StopAt(2)])
    config = tmp_path / "run" / "config.toml"
    lines = config.read_text().replace('"spsa"', '"backprop"').splitlines(keepends=True)
    config.write_text("".join(line for line in lines if not line.startswith(("directions", "noise"))))
    with pytest.raises(InputError, match=r"was started with other .*estimator"):
        resume(tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.fixture
def moved(options, whole_run, tmp_path):
    """A copy of the whole run whose model is gone."""
    shutil.copytree(whole_run, tmp_path / "moved")
    config = tmp_path / "moved" / "config.toml"
    config.write_text(config.read_text().replace(options["model"], str(tmp_path / "gone")))
    return tmp_path / "moved"


@pytest.mark.parametrize("step", [0, 3, 9, 12])
def test_replay_at_a_checkpoint_needs_no_model_and_gives_the_live_theta(moved, kept, tmp_path, step):
    assert replay_run(moved, tmp_path / "out", step) == step
    if step:
        assert bits(load_adapter(tmp_path / "out")[0]) == kept.thetas[step]


def test_replay_between_checkpoints_needs_the_model(moved, tmp_path):
    with pytest.raises(InputError, match="gone"):
        replay_run(moved, tmp_path / "out", 5)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("step", [1, 5, 11])
def test_replay_between_checkpoints_computes_the_live_theta_again(whole_run, kept, tmp_path, step):
    before = {path: path.read_bytes() for path in whole_run.rglob("*") if path.is_file()}
    assert replay_run(whole_run, tmp_path / "out", step) == step
    assert bits(load_adapter(tmp_path / "out")[0]) == kept.thetas[step]
    assert {path: path.read_bytes() for path in whole_run.rglob("*") if path.is_file()} == before
