"""A run goes on as the run that it was: with its settings, its base weights and its own steps; where it is computed,
how often it is looked at and where its folder lies may change."""

import shutil
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tomli_w
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.test_train import StopAt, durable
from zotune import InputError, evaluate, mezo_finetune, predict, replay_run, resume
from zotune.run.journal import read_journal

pytestmark = pytest.mark.slow

STEPS, STOPPED = 6, 3
NOT_THOSE = "are not those that the adapter"


@pytest.fixture(scope="module")
def model(opt_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that a test may spoil, if it puts it back."""
    folder = tmp_path_factory.mktemp("base") / "opt"
    shutil.copytree(opt_dir, folder)
    return folder


@pytest.fixture(scope="module")
def options(model: Path, reviews_file: Path) -> dict:
    return {
        "model": str(model), "train_data": str(reviews_file), "labels": ("terrible", "great"),
        "invocation": " It was", "num_steps": STEPS, "batch_size": 3, "directions": 2, "eval_steps": 2,
        "estimator": "spsa", "noise": "gaussian", "optimizer": "sgd", "learning_rate": 0.05, "epsilon": 0.01,
        "lr_scheduler_type": "linear", "lora_rank": 2, "num_threads": 1, "max_eval_samples": 4,
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole_run(options, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    mezo_finetune(**options, output_dir=str(folder))
    return folder


def stop(options: dict, folder: Path) -> Path:
    with pytest.raises(KeyboardInterrupt):
        mezo_finetune(**options, output_dir=str(folder), callbacks=[StopAt(STOPPED)])
    return folder


@pytest.fixture(scope="module")
def stopped(options, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stop(options, tmp_path_factory.mktemp("runs") / "stopped")


@pytest.fixture
def run(stopped, tmp_path) -> Path:
    """A run that was stopped in the middle."""
    shutil.copytree(stopped, tmp_path / "run")
    return tmp_path / "run"


def edit(run: Path, **settings: object) -> None:
    """Write other values into config.toml; None takes a setting out."""
    path = run / "config.toml"
    values = tomllib.loads(path.read_text()) | settings
    path.write_text(tomli_w.dumps({name: value for name, value in values.items() if value is not None}))


def assert_refused(run: Path, *names: str) -> None:
    """With the names of what is another, and with nothing changed."""
    before = (run / "journal.jsonl").read_bytes()
    with pytest.raises(InputError, match="was started with other ") as error:
        resume(run)
    found = str(error.value).partition("was started with other ")[2].partition(":")[0].split(", ")
    assert set(names) <= set(found)
    assert (run / "journal.jsonl").read_bytes() == before


# ---- settings


@pytest.mark.parametrize(("name", "value"), [
    ("batch_size", 4), ("learning_rate", 0.06), ("epsilon", 0.02), ("directions", 1), ("estimator", "fzoo"),
    ("lr_scheduler_type", "constant"), ("lr_scheduler_type", "cosine"), ("dtype", "bfloat16"), ("warmup_steps", 1),
    ("scope", "everywhere"),
])  # fmt: skip
def test_settings_that_decide_its_numbers_cannot_be_edited(run, name, value):
    edit(run, **{name: value})
    assert_refused(run, name)


@pytest.mark.parametrize("changes", [
    ({"seed": 1}, "seed"), ({"optimizer": "sign", "sgd": None}, "optimizer"), ({"weight_decay": 0.1}, "optimizer"),
    ({"clip": 1.0}, "optimizer"), ({"noise": "rademacher"}, "noise"), ({"sparsity": 0.5}, "noise"),
    ({"noise_blocks": 2}, "noise"), ({"lora_rank": 3}, "tensors", "lora"), ({"lora_alpha": 3.0}, "lora"),
    ({"target_modules": ["k_proj"]}, "lora"), ({"tuning": "vera", "init_lora_weights": None}, "tuning", "lora"),
    ({"init_lora_weights": "kaiming", "tuning": "lora"}, "tuning", "lora"),
    ({"invocation": " It is"}, "lora", "training examples"), ({"labels": ["bad", "good"]}, "training examples"),
    ({"max_length": 9}, "training examples"), ({"data_seed": 1}, "training examples", "evaluation examples"),
    ({"max_eval_samples": 3}, "evaluation examples"), ({"max_train_samples": 30}, "training examples"),
    ({"num_per_class": 4}, "training examples", "evaluation examples"),
], ids=lambda changes: " ".join(changes[0]))  # fmt: skip
def test_nor_those_that_the_journal_knows_by_other_names(run, changes):
    settings, *names = changes
    edit(run, **settings)
    assert_refused(run, *names)


def test_nor_those_of_the_estimator_alone(options, tmp_path):
    run = stop({**options, "estimator": "svrg", "svrg": {"steps": 4, "batches": 2}}, tmp_path / "run")
    for changed in ({"steps": 5, "batches": 2}, {"steps": 4, "batches": 3}, None):
        edit(run, svrg=changed)
        assert_refused(run, "estimator_settings")
    edit(run, svrg={"steps": 4, "batches": 2})
    resume(run)


def test_a_value_that_was_chosen_may_be_taken_out_where_it_would_be_chosen_again(options, tmp_path):
    rest = {name: value for name, value in options.items() if name not in ("learning_rate", "epsilon", "noise")}
    mezo_finetune(**rest, output_dir=str(tmp_path / "whole"))
    run = stop(rest, tmp_path / "run")
    edit(run, learning_rate=None, noise=None, epsilon=None)
    resume(run)
    assert durable(run) == durable(tmp_path / "whole")


# ---- what may change


@pytest.mark.parametrize("settings", [{"num_threads": 2}, {"num_threads": None}, {"kv_cache_gb": 0.0}], ids=str)
def test_where_it_is_computed_may_change(run, whole_run, settings):
    """The last bits of a loss depend on the number of threads."""
    steps = (run / "journal.jsonl").read_bytes()
    edit(run, **settings)
    assert resume(run).summary["steps"] == STEPS
    assert (run / "journal.jsonl").read_bytes().startswith(steps)
    if "kv_cache_gb" in settings:
        assert durable(run) == durable(whole_run)


@pytest.mark.parametrize(("before", "after"), [("torch", "plain"), ("plain", "torch")])
def test_the_engine_may_change(options, tmp_path, before, after):
    """Its numbers are then those of the other engine, to the rounding of a forward pass."""
    run = stop({**options, "engine": before}, tmp_path / "run")
    steps = (run / "journal.jsonl").read_bytes()
    edit(run, engine=after)
    assert resume(run).summary["steps"] == STEPS
    assert (run / "journal.jsonl").read_bytes().startswith(steps)


@pytest.mark.parametrize("settings", [{"eval_steps": 1}, {"early_stopping_patience": 50}], ids=str)
def test_how_often_it_is_looked_at_may_change(run, whole_run, settings):
    edit(run, **settings)
    resume(run)
    for name in ("journal.jsonl", "adapter/adapter_model.safetensors"):
        assert (run / name).read_bytes() == (whole_run / name).read_bytes()


def test_where_its_folder_lies_may_change(run, whole_run, tmp_path):
    run.rename(tmp_path / "elsewhere")
    resume(tmp_path / "elsewhere")
    assert durable(tmp_path / "elsewhere") == durable(whole_run)
    assert not run.exists()


def test_where_its_model_lies_may_change(run, model, whole_run, tmp_path):
    shutil.copytree(model, tmp_path / "moved")
    edit(run, model=str(tmp_path / "moved"))
    resume(run)
    assert durable(run) == durable(whole_run)


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_it_may_go_on_for_more_steps_than_it_began_with(options, tmp_path, schedule):
    """At a constant rate it is then the longer run; else its further steps have the rates of the longer schedule."""
    options = {**options, "lr_scheduler_type": schedule}
    mezo_finetune(**options, output_dir=str(tmp_path / "run"))
    steps = read_journal(tmp_path / "run" / "journal.jsonl")[1]
    edit(tmp_path / "run", num_steps=STEPS + 2)
    assert resume(tmp_path / "run").summary["steps"] == STEPS + 2
    entries = read_journal(tmp_path / "run" / "journal.jsonl")[1]
    assert entries[:STEPS] == steps
    mezo_finetune(**{**options, "num_steps": STEPS + 2}, output_dir=str(tmp_path / "whole"))
    whole = read_journal(tmp_path / "whole" / "journal.jsonl")[1]
    assert [entry.learning_rate for entry in entries[STEPS:]] == [entry.learning_rate for entry in whole[STEPS:]]
    assert (entries == whole) is (schedule == "constant")


# ---- base weights


def all_at_random(weights: dict[str, torch.Tensor]) -> None:
    for tensor in weights.values():
        tensor.normal_()


def rows_of_one_tensor(weights: dict[str, torch.Tensor]) -> None:
    next(tensor for name, tensor in weights.items() if name.endswith("fc1.weight"))[5:9] *= 1.5


def rows_of_the_embedding(weights: dict[str, torch.Tensor]) -> None:
    """A tensor that is not read whole."""
    tensor = next(tensor for name, tensor in weights.items() if name.endswith("embed_tokens.weight"))
    assert tensor.numel() * tensor.element_size() > 2**14
    tensor[100:130] *= 1.5


def two_tensors_exchanged(weights: dict[str, torch.Tensor]) -> None:
    q, v = (next(name for name in weights if name.endswith(f"{one}_proj.weight")) for one in "qv")
    weights[q], weights[v] = weights[v], weights[q]


@contextmanager
def changed_weights(model: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Iterator[None]:
    path = model / "model.safetensors"
    content, weights = path.read_bytes(), load_file(path)
    change(weights)
    try:
        save_file(weights, path, metadata={"format": "pt"})
        yield
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize(
    "change", [all_at_random, rows_of_one_tensor, rows_of_the_embedding, two_tensors_exchanged],
    ids=lambda change: change.__name__,
)  # fmt: skip
@pytest.mark.parametrize("tuning", ["lora_fa", "full"])
def test_other_base_weights_are_refused(options, run, model, whole_run, tmp_path, tuning, change):
    if tuning == "full":
        rest = {name: value for name, value in options.items() if name not in ("lora_rank", "learning_rate")}
        run = stop({**rest, "tuning": "full"}, tmp_path / "full")
    with changed_weights(model, change):
        assert_refused(run, "base weights")
    resume(run)


def test_an_adapter_on_other_base_weights_is_used_with_a_warning(options, model, whole_run, tmp_path, caplog):
    """Beside its run, and away from it; weights in another dtype are not compared."""
    shutil.copytree(whole_run / "adapter", tmp_path / "adapter")
    replay_run(whole_run, tmp_path / "replayed")
    away = {name: options[name] for name in ("model", "labels", "invocation")}
    away |= {"eval_data": options["train_data"], "max_eval_samples": 4}
    uses = [
        lambda: evaluate(adapter=whole_run / "adapter"), lambda: predict(["a film"], adapter=whole_run / "best"),
        lambda: evaluate(adapter=tmp_path / "adapter", **away), lambda: evaluate(adapter=tmp_path / "replayed", **away),
        lambda: evaluate(adapter=tmp_path / "adapter", **away, engine="plain"),
    ]  # fmt: skip
    for use in uses:
        use()
    assert NOT_THOSE not in caplog.text
    with changed_weights(model, rows_of_one_tensor):
        for use in uses:
            caplog.clear()
            use()
            assert NOT_THOSE in caplog.text
        caplog.clear()
        evaluate(adapter=whole_run / "adapter", dtype="bfloat16")
        (tmp_path / "adapter" / "zotune.json").write_text("torn")
        evaluate(adapter=tmp_path / "adapter", **away)
        assert NOT_THOSE not in caplog.text


def test_peft_loads_an_adapter_that_names_its_base(model, whole_run):
    assert (whole_run / "adapter" / "zotune.json").is_file()
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), whole_run / "adapter")
    expected = load_file(whole_run / "adapter" / "adapter_model.safetensors")
    tensors = get_peft_model_state_dict(loaded)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], value) for name, value in expected.items())


# ---- steps of another run


@pytest.mark.parametrize("first", [1, 2, STOPPED])
@pytest.mark.parametrize("other", [{"seed": 1}, {"learning_rate": 0.06}], ids=str)
def test_steps_of_another_run_are_refused(options, run, tmp_path, first, other):
    theirs = stop({**options, **other}, tmp_path / "theirs")
    path = run / "journal.jsonl"
    ours, lines = (folder.joinpath("journal.jsonl").read_bytes().splitlines(True) for folder in (run, theirs))
    path.write_bytes(b"".join(ours[:first] + lines[first:]))
    before = path.read_bytes()
    with pytest.raises(InputError, match=rf"journal.jsonl: line {first + 1} is damaged: .* does not follow"):
        resume(run)
    assert path.read_bytes() == before


def test_the_whole_journal_of_another_run_is_refused(options, run, tmp_path):
    theirs = stop({**options, "seed": 1}, tmp_path / "theirs")
    shutil.copy(theirs / "journal.jsonl", run / "journal.jsonl")
    assert_refused(run, "seed")
