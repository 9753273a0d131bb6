"""From settings to a finished run: find the data and the model, build the parts, train, sum up.

`mezo_finetune` is the whole job; `make_trainer` stops before training, for those who want the loop in their hands;
`resume` goes on with a run.
"""

import logging
import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from zotune.adapter.forms import initial_theta
from zotune.adapter.spec import AdapterSpec, LoraSpec
from zotune.assemble.bounds import check_bounds
from zotune.assemble.data import load_data
from zotune.assemble.given import checked_callbacks, checked_model, listed
from zotune.assemble.model import check_installed, find_model
from zotune.assemble.parts import assemble
from zotune.assemble.rewards import RewardFuncs, names_of, open_rewards, reopened
from zotune.assemble.trainer import export_of, header_of, trainer_of
from zotune.config.reading import make_config, read_run_config, write_toml
from zotune.config.settings import Config
from zotune.data.records import json_lines
from zotune.errors import InputError
from zotune.files import write_whole
from zotune.run.evaluation import Evaluation
from zotune.run.folder import RunFolder, default_output_dir
from zotune.run.journal import Journal, Point
from zotune.run.locks import LOCK_FILE
from zotune.run.lost import Evaluator, Lost
from zotune.run.metrics import MetricsFile, write_json
from zotune.run.own_metrics import ComputeMetrics
from zotune.run.rebuild import check_journal_is_whole, rebuild
from zotune.run.summary import summarize
from zotune.run.trackers import check_packages
from zotune.run.trainer import Callback, MeZOTrainer
from zotune.values import path_of

logger = logging.getLogger("zotune")


@dataclass(frozen=True)
class Result:
    """What a run leaves. Metrics are on the evaluation data, None where there is none.

    After full-parameter training `adapter` is a model folder.
    """

    run_folder: Path
    adapter: Path
    initial: Evaluation | None
    best: Evaluation | None
    final: Evaluation | None
    summary: dict[str, Any]


def mezo_finetune(
    model: str | Path | PreTrainedModel = "demo",
    train_data: Any = None,
    eval_data: Any = None,
    *,
    task: str | None = None,
    tokenizer: Tokenizer | None = None,
    callbacks: Iterable[Callback] | None = (),
    reward_funcs: RewardFuncs | None = None,
    compute_metrics: ComputeMetrics | None = None,
    **settings: Any,
) -> Result:
    """Fine-tune a causal or masked LM with forward passes only (MeZO, arXiv 2305.17333, and its kin), and export an
    adapter for PEFT.

    Args:
        model: hub id, local folder, or a loaded model of transformers (give its `tokenizer` where the model's name
            does not lead to it).
        train_data, eval_data: a path, a hub id, a list of dicts or a `datasets.Dataset`; default: the task's own.
        task: a name of `zotune tasks`; default: from the data.
        callbacks: told of steps and evaluations; see `Callback`.
        reward_funcs: what judges the texts that the model writes, where there is nothing to differentiate: functions
            with the signature of TRL's GRPOTrainer, or names as of --reward.
        compute_metrics: what evaluations measure beside the loss, as transformers' Trainer has it; `ComputeMetrics`
            says what it is given. For names see the setting `metrics`.
        settings: all others by their names, as in `Config` and on the command line; the settings of a single method
            as a dict, e.g. `adam={"beta1": 0.95}`.

    Returns:
        Metrics before, at best and after, and the run folder with the adapter.

    Raises:
        InputError: something asked for cannot be done; nothing was written.
        TrainingError: training had to stop; the run folder holds all steps before.
    """
    return run(make_trainer(model, train_data, eval_data, task=task, tokenizer=tokenizer, callbacks=callbacks,
                            reward_funcs=reward_funcs, compute_metrics=compute_metrics, **settings))  # fmt: skip


def make_trainer(
    model: str | Path | PreTrainedModel = "demo",
    train_data: Any = None,
    eval_data: Any = None,
    *,
    task: str | None = None,
    tokenizer: Tokenizer | None = None,
    callbacks: Iterable[Callback] | None = (),
    reward_funcs: RewardFuncs | None = None,
    compute_metrics: ComputeMetrics | None = None,
    **settings: Any,
) -> MeZOTrainer:
    """As `mezo_finetune`, but returns the trainer before its first step, with its run folder made.

    Use it in a `with` statement, or `close` it at the end.
    """
    loaded = None if isinstance(model, str | os.PathLike) else checked_model(model)
    named = {"model": model, "task": task, **settings}
    if reward_funcs is not None:
        named["reward"] = names_of(reward_funcs)
    if loaded is not None:  # one that was made in memory has no name
        named["model"] = loaded.name_or_path or Config.model
    in_memory = {}
    for name, data in (("train_data", train_data), ("eval_data", eval_data)):
        if isinstance(data, str | os.PathLike):
            named[name] = data
        elif data is not None:
            in_memory[name] = data
    config = make_config(named)
    if loaded is not None:
        config = replace(config, model=loaded.name_or_path or "")
    return start_run(config, in_memory, loaded, tokenizer, callbacks, reward_funcs, compute_metrics)


def start_run(
    config: Config,
    in_memory: dict[str, Any] | None = None,
    model: PreTrainedModel | None = None,
    tokenizer: Tokenizer | None = None,
    callbacks: Iterable[Callback] | None = (),
    reward_funcs: RewardFuncs | None = None,
    compute_metrics: ComputeMetrics | None = None,
) -> MeZOTrainer:
    """The trainer of a new run.

    Args:
        in_memory: records given from Python, by "train_data" and "eval_data"; they are kept in the run folder.
        reward_funcs: what the names of `config.reward` stand for, where they are not to be looked up.
    """
    callbacks = checked_callbacks(callbacks, tokenizer)
    check_installed(config)
    check_packages(config.report_to)
    named = config.output_dir or (Path("output") / config.run_name if config.run_name else None)
    given = RunFolder(Path(named)) if named else None
    with ExitStack() as held:  # the folder, until the journal is open
        if given:
            held.enter_context(given.claim(config.overwrite))
        judge = open_rewards(config, reward_funcs)
        unless_begun = held.enter_context(ExitStack())
        if judge:
            unless_begun.callback(judge.close)
        records = listed(in_memory or {})
        data = load_data(config, **records)
        lines = {name: json_lines(name, rows) for name, rows in records.items()}
        folder = given or RunFolder(default_output_dir(data.task.name, config.model))
        kept: dict[str, Any] = {name: str(folder.path.resolve() / f"{name}.jsonl") for name in lines}
        config = replace(config, output_dir=str(folder.path.resolve()), overwrite=False, **kept)
        found = find_model(config, model, tokenizer, data.task)
        check_bounds(config, data)
        parts = assemble(config, data, found, judge=judge, compute_metrics=compute_metrics)
        if not given:
            held.enter_context(folder.claim(overwrite=False))
        folder.clear()
        header = header_of(parts)
        try:
            write_toml(parts.run.config, folder.config)  # first: by it a folder is known that a crash leaves here
            for name, content in lines.items():
                write_whole(Path(kept[name]), content)
            journal = Journal.create(folder.journal, header)
        except OSError as error:
            raise InputError(f"--output-dir: cannot write {folder.path}: {error.strerror}") from error
        unless_begun.pop_all()
    theta = parts.engine.weights or initial_theta(header.tensors, header.seed, header.lora)
    state = header.make_optimizer().init(theta)
    return trainer_of(parts, folder, journal, MetricsFile(folder.metrics), header, Point(0, theta, state), callbacks)


def resume(
    run_folder: str | Path,
    *,
    model: PreTrainedModel | None = None,
    tokenizer: Tokenizer | None = None,
    callbacks: Iterable[Callback] | None = (),
    trust_remote_code: bool = False,
    reward_funcs: RewardFuncs | None = None,
    compute_metrics: ComputeMetrics | None = None,
) -> Result:
    """Go on with a run from the last step of its journal; the rest is bit for bit what it would have been.

    Args:
        model, tokenizer: needed only where the run was started with a loaded model that has no name.
        trust_remote_code: run Python code that comes with the model; never taken from the run folder.
        reward_funcs: the run's rewards once more, where they are code and not built in: for the same reason.
        compute_metrics: as for `mezo_finetune`; a run does not keep it.

    Raises:
        InputError: not a run folder, a damaged journal, or data that has changed since the run began.
    """
    trainer = reopen(
        run_folder, model=model, tokenizer=tokenizer, callbacks=callbacks, trust_remote_code=trust_remote_code,
        reward_funcs=reward_funcs, compute_metrics=compute_metrics,
    )  # fmt: skip
    return run(trainer)


def reopen(
    run_folder: str | Path,
    *,
    model: PreTrainedModel | None = None,
    tokenizer: Tokenizer | None = None,
    callbacks: Iterable[Callback] | None = (),
    trust_remote_code: bool = False,
    reward_funcs: RewardFuncs | None = None,
    compute_metrics: ComputeMetrics | None = None,
) -> MeZOTrainer:
    """The trainer of a run that was stopped, where it stopped; `resume` trains it to the end."""
    folder = RunFolder(Path(path_of(run_folder, "run_folder")))
    loaded = None if model is None else checked_model(model)
    callbacks = checked_callbacks(callbacks, tokenizer)
    if not folder.config.is_file() and folder.journal.is_file():
        raise InputError(
            f"{folder.path} has lost its {folder.config.name}, and cannot go on without; `zotune replay {folder.path}` "
            "still gives the adapter after any step"
        )
    if not folder.config.is_file():
        raise InputError(f"{folder.path} is not a run folder: it has no {folder.config.name}")
    config = replace(read_run_config(folder.config), trust_remote_code=trust_remote_code)
    config = reopened(config, reward_funcs, f"as in `zotune resume {folder.path} --reward {' '.join(config.reward)}`")
    check_installed(config)
    check_packages(config.report_to)
    journal, header, entries = Journal.reopen(folder.journal)
    judge = None
    try:
        begun = header.lora if config.adapter is None and isinstance(header.lora, LoraSpec) else None
        if begun and begun.start and config.lora_rank not in (None, begun.rank):
            raise _started_with_other(folder, ["tensors", "lora"])  # a start of another rank fits no model
        (folder.path / LOCK_FILE).unlink(missing_ok=True)  # a crash has left it: whoever had it has the journal, too
        check_journal_is_whole(folder, entries)
        judge = open_rewards(config, reward_funcs)
        data = load_data(config)
        found = find_model(config, loaded, tokenizer, data.task)
        parts = assemble(_as_begun(config, header.lora), data, found, header.lora, judge, compute_metrics)
        if changed := header.changes(header_of(parts, header.examples_version)):
            parts.engine.close()
            raise _started_with_other(folder, changed)
        evaluator = Evaluator(
            parts.engine, parts.run.objective, parts.evaluation, parts.run.config.eval_steps, parts.own_metrics
        )
        lost = Lost(folder, evaluator, export_of(parts, header), len(entries))
        point, estimator = rebuild(header, entries, parts.run.estimator, parts.engine.weights, folder.checkpoints, lost)
        logger.info("resuming %s after step %d", folder.path, point.step)
        journal.cut(point.step)
        lost.write(entries[: point.step])
        metrics = MetricsFile(folder.metrics, keep_until_step=point.step)
    except BaseException as error:
        journal.close()
        if judge:
            judge.close()
        if isinstance(error, OSError):
            raise InputError(f"cannot write {error.filename or folder.path}: {error.strerror}") from error
        raise
    return trainer_of(parts, folder, journal, metrics, header, point, callbacks, estimator)


def run(trainer: MeZOTrainer) -> Result:
    """Train to the end, sum up in summary.json, and close the trainer."""
    with trainer:
        return finished(trainer)


def finished(trainer: MeZOTrainer) -> Result:
    """Train to the end, and sum up in summary.json; the trainer stays open."""
    trainer.train()
    summary = summarize(trainer)
    write_json(trainer.folder.summary, summary)
    initial, best, final = (
        Evaluation(**summary[name]) if summary[name] else None for name in ("initial", "best", "final")
    )
    return Result(trainer.folder.path, trainer.exported, initial, best, final, summary)


def _started_with_other(folder: RunFolder, names: list[str]) -> InputError:
    return InputError(
        f"{folder.path} was started with other {', '.join(names)}: put back the data and {folder.config.name} as they "
        "were, or start a new run"
    )


def _as_begun(config: Config, lora: AdapterSpec | None) -> Config:
    """With the form of the adapter, which config.toml does not say of runs that an older zotune began."""
    if not isinstance(lora, LoraSpec) or lora.start or lora.peft_type == "vera":
        return config
    return make_config(
        {"tuning": config.tuning or lora.peft_type, "init_lora_weights": config.init_lora_weights or "kaiming"}, config
    )
