"""From a configuration to a finished run: find the data, load the model, build the parts, train, sum up.

`mezo_finetune` is the whole job; `make_trainer` stops before training, for those who want the loop in their hands;
`resume` goes on with a run.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from zotune.adapter.forms import initial_theta
from zotune.adapter.peft_files import save_adapter
from zotune.adapter.spec import AdapterSpec, LoraSpec
from zotune.assemble.parts import Parts, assemble, load_data
from zotune.config.defaults import arguments_of, make_estimator, make_noise
from zotune.config.settings import Config, make_config, read_toml, write_toml
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.loading import model_path
from zotune.engine.torch.plain import PlainEngine
from zotune.engine.torch.weights import save_model
from zotune.errors import InputError
from zotune.run.folder import RunFolder, default_output_dir
from zotune.run.journal import Entry, Header, Journal, history
from zotune.run.metrics import MetricsFile, write_json
from zotune.run.summary import summarize
from zotune.run.trainer import Callback, Evaluation, Export, MeZOTrainer, TrainingPlan
from zotune.zo.estimators import Estimator
from zotune.zo.objectives import OBJECTIVES
from zotune.zo.optimizers import OPTIMIZERS, Tensors
from zotune.zo.protocol import Theta
from zotune.zo.schedules import make_schedule

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
    model: str | PreTrainedModel = "demo",
    train_data: Any = None,
    eval_data: Any = None,
    *,
    task: str | None = None,
    tokenizer: Tokenizer | None = None,
    callbacks: Iterable[Callback] = (),
    **settings: Any,
) -> Result:
    """Fine-tune a causal LM with forward passes only (MeZO, arXiv 2305.17333, and its kin) and export a PEFT adapter.

    Args:
        model: hub id, local folder, or a loaded model of transformers (give its `tokenizer` where the model's name
            does not lead to it).
        train_data, eval_data: a path, a hub id, a list of dicts or a `datasets.Dataset`; default: the task's own.
        task: a name of `zotune tasks`; default: from the data.
        callbacks: told of steps and evaluations; see `Callback`.
        settings: any other field of `Config`, by the same names as the command's flags.

    Returns:
        Metrics before, at best and after, and the run folder with the adapter.

    Raises:
        InputError: something asked for cannot be done; nothing was written.
        TrainingError: training had to stop; the run folder holds all steps before.
    """
    trainer = make_trainer(
        model, train_data, eval_data, task=task, tokenizer=tokenizer, callbacks=callbacks, **settings
    )
    return run(trainer)


def make_trainer(
    model: str | PreTrainedModel = "demo",
    train_data: Any = None,
    eval_data: Any = None,
    *,
    task: str | None = None,
    tokenizer: Tokenizer | None = None,
    callbacks: Iterable[Callback] = (),
    kind: type[MeZOTrainer] = MeZOTrainer,
    **settings: Any,
) -> MeZOTrainer:
    """As `mezo_finetune`, but returns the trainer before its first step, with its run folder made.

    Use it in a `with` statement, or `close` it at the end. `kind` is for those who change what a step is.
    """
    named = {"model": model if isinstance(model, str) else model.name_or_path, "task": task, **settings}
    for name, data in (("train_data", train_data), ("eval_data", eval_data)):
        if isinstance(data, str | Path):
            named[name] = str(data)
    config = make_config(named)
    given = RunFolder(Path(config.output_dir)) if config.output_dir else None
    with ExitStack() as held:  # the folder, until the journal is open
        if given:
            held.enter_context(given.claim(config.overwrite))
        data = load_data(config, train_data, eval_data)
        parts = assemble(config, data, None if isinstance(model, str) else model, tokenizer)
        kind.check(parts.engine)

        folder = given or RunFolder(default_output_dir(data.task.name, config.model))
        if not given:
            held.enter_context(folder.claim(overwrite=False))
        folder.clear()
        kept = {
            name: _keep(source, folder.path.resolve() / f"{name}.jsonl")
            for name, source in (("train_data", train_data), ("eval_data", eval_data))
            if source is not None and not isinstance(source, str | Path)
        }
        config = make_config({**kept, "output_dir": str(folder.path.resolve()), "overwrite": False}, base=parts.config)
        header = _header(config, parts)
        try:
            write_toml(config, folder.config)
            journal = Journal.create(folder.journal, header)
        except OSError as error:
            raise InputError(f"--output-dir: cannot write {folder.path}: {error.strerror}") from error
    theta = parts.engine.weights or initial_theta(header.tensors, header.seed, header.lora)
    return _trainer(
        config, parts, folder, journal, MetricsFile(folder.metrics), header,
        estimator=make_estimator(config), theta=theta, state=header.make_optimizer().init(theta), step=0,
        callbacks=callbacks, kind=kind,
    )  # fmt: skip


def resume(
    run_folder: str | Path,
    *,
    model: PreTrainedModel | None = None,
    tokenizer: Tokenizer | None = None,
    callbacks: Iterable[Callback] = (),
) -> Result:
    """Go on with a run from the last step of its journal; the rest is bit for bit what it would have been.

    Args:
        model, tokenizer: needed only where the run was started with a loaded model that has no name.

    Raises:
        InputError: not a run folder, a damaged journal, or data that has changed since the run began.
    """
    folder = RunFolder(Path(run_folder))
    if not folder.config.is_file():
        raise InputError(f"{folder.path} is not a run folder: it has no {folder.config.name}")
    config = read_toml(folder.config)
    data = load_data(config)
    journal, header, entries = Journal.reopen(folder.journal)
    try:
        start = header.lora.start if header.lora else None
        parts = assemble(_as_begun(config, header.lora), data, model, tokenizer, start)
    except BaseException:
        journal.close()
        raise
    if changed := header.changes(_header(config, parts)):
        journal.close()
        raise InputError(
            f"{folder.path} was started with other {', '.join(changed)}: put back the data and {folder.config.name} "
            "as they were, or start a new run"
        )
    logger.info("resuming %s after step %d", folder.path, len(entries))
    theta, state, estimator = _rebuild(header, entries, make_estimator(config), parts.engine.weights)
    metrics = MetricsFile(folder.metrics, keep_until_step=len(entries))
    trainer = _trainer(
        config,
        parts,
        folder,
        journal,
        metrics,
        header,
        estimator=estimator,
        theta=theta,
        state=state,
        step=len(entries),
        callbacks=callbacks,
    )
    return run(trainer)


# ---- the parts of a trainer


def _as_begun(config: Config, lora: AdapterSpec | None) -> Config:
    """With the form of the adapter, which config.toml does not say of runs that an older zotune began."""
    if not isinstance(lora, LoraSpec) or lora.start or lora.peft_type == "vera":
        return config
    values = {"peft_type": config.peft_type or lora.peft_type, "init_lora_weights": config.init_lora_weights}
    return make_config({"init_lora_weights": "kaiming"} | {k: v for k, v in values.items() if v}, base=config)


def _header(config: Config, parts: Parts) -> Header:
    assert config.optimizer is not None
    made = OPTIMIZERS[config.optimizer]
    optimizer = made(**arguments_of(made, config))
    return Header(
        seed=config.seed,
        base_model=model_path(config.model),
        tensors=parts.engine.tensor_shapes,
        lora=parts.engine.spec,
        optimizer={"name": config.optimizer, **asdict(optimizer)},
        data=parts.digests,
        noise=make_noise(config),
        dtype=config.dtype if parts.engine.spec is None else None,
    )


def _rebuild(
    header: Header, entries: Sequence[Entry], estimator: Estimator, start: Theta | None
) -> tuple[Theta, Tensors, Estimator]:
    """Theta, the optimizer's state and the estimator as the run that wrote `entries` left them."""
    points = history(header, entries, start)
    theta, state = next(points)
    for entry, (next_theta, next_state) in zip(entries, points, strict=True):
        estimator = estimator.after(theta, entry.slopes)
        theta, state = next_theta, next_state
    return theta, state, estimator


def _trainer(
    config: Config,
    parts: Parts,
    folder: RunFolder,
    journal: Journal,
    metrics: MetricsFile,
    header: Header,
    *,
    estimator: Estimator,
    theta: Any,
    state: Any,
    step: int,
    callbacks: Iterable[Callback],
    kind: type[MeZOTrainer] = MeZOTrainer,
) -> MeZOTrainer:
    assert config.learning_rate is not None
    assert config.objective is not None
    return kind(
        engine=parts.engine,
        estimator=estimator,
        optimizer=header.make_optimizer(),
        objective=OBJECTIVES[config.objective],
        schedule=make_schedule(config.lr_scheduler_type, config.learning_rate, config.num_steps, config.warmup_steps),
        plan=TrainingPlan(**{field.name: getattr(config, field.name) for field in fields(TrainingPlan)}),
        train_examples=parts.train,
        eval_examples=parts.evaluation,
        folder=folder,
        journal=journal,
        metrics=metrics,
        export=_export(parts, header.base_model),
        theta=theta,
        optimizer_state=state,
        step=step,
        noise=header.noise,
        callbacks=callbacks,
    )


def _export(parts: Parts, base_model: str) -> Export:
    if parts.engine.spec is None:
        assert isinstance(parts.engine, TorchEngine | PlainEngine)
        model = parts.engine.model
        return Export("model", lambda folder, theta: save_model(folder, model, parts.tokenizer))
    return Export("adapter", partial(save_adapter, spec=parts.engine.spec, base_model=base_model))


def run(trainer: MeZOTrainer) -> Result:
    """Train to the end, sum up in summary.json, and close the trainer."""
    with trainer:
        trainer.train()
        summary = summarize(trainer)
        write_json(trainer.folder.summary, summary)
    initial, best, final = (
        Evaluation(**summary[name]) if summary[name] else None for name in ("initial", "best", "final")
    )
    return Result(trainer.folder.path, trainer.exported, initial, best, final, summary)


def _keep(data: Iterable[Any], path: Path) -> str:
    """Data that lives in memory goes into the run folder, so that the run can be resumed."""
    try:
        lines = [json.dumps(dict(row)) for row in data]
    except TypeError as error:
        raise InputError(f"{path.stem}: records must hold plain values, as JSON has them: {error}") from error
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)
