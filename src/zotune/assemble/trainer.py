"""The trainer of a run around its parts, and the first line of its journal."""

from collections.abc import Iterable
from functools import partial

from zotune.adapter.peft_files import is_saved, save_adapter
from zotune.assemble.model import model_path
from zotune.assemble.parts import Parts
from zotune.config.run import Run
from zotune.data.digest import EXAMPLES_VERSION
from zotune.run.folder import RunFolder
from zotune.run.journal import Header, Journal, Point
from zotune.run.metrics import MetricsFile
from zotune.run.reporting import reporters
from zotune.run.trainer import Callback, Export, MeZOTrainer, TrainingPlan
from zotune.zo.estimators import Estimator


def header_of(parts: Parts, examples_version: int = EXAMPLES_VERSION) -> Header:
    """The first line of the journal."""
    config = parts.run.config
    return Header(
        seed=config.seed,
        base_model=model_path(config.model),
        tensors=parts.engine.tensor_shapes,
        lora=parts.engine.spec,
        optimizer=parts.run.optimizer,
        data=parts.digests(examples_version),
        noise=parts.run.noise,
        dtype=config.dtype if parts.engine.spec is None else None,
        settings=parts.run.decisive | ({"demonstrations": parts.demonstrations} if parts.demonstrations else {}),
        base_weights=parts.engine.identity(),
        examples_version=examples_version,
    )


def trainer_of(
    parts: Parts,
    folder: RunFolder,
    journal: Journal,
    metrics: MetricsFile,
    header: Header,
    point: Point,
    callbacks: Iterable[Callback],
    estimator: Estimator | None = None,
) -> MeZOTrainer:
    """The trainer at a point of its run; `estimator` as it is there, where it has learned something."""
    return MeZOTrainer(
        engine=parts.engine,
        estimator=estimator or parts.run.estimator,
        optimizer=header.make_optimizer(),
        objective=parts.run.objective,
        schedule=parts.run.schedule,
        plan=_plan(parts.run),
        train_examples=parts.train,
        stream=parts.stream,
        eval_examples=parts.evaluation,
        folder=folder,
        journal=journal,
        metrics=metrics,
        export=export_of(parts, header),
        theta=point.theta,
        optimizer_state=point.state,
        step=point.step,
        noise=header.noise,
        callbacks=[*callbacks, *reporters(parts.run.config.report_to)],
        own_metrics=parts.own_metrics,
    )


def _plan(run: Run) -> TrainingPlan:
    config = run.config
    return TrainingPlan(
        num_steps=config.num_steps, batch_size=config.batch_size, directions=config.directions or 0, seed=config.seed,
        eval_steps=config.eval_steps, early_stopping_patience=config.early_stopping_patience, model=config.model,
        task=run.task.name, epsilon=config.epsilon, dtype=config.dtype, logging_steps=config.logging_steps,
        save_steps=config.save_steps, save_total_limit=config.save_total_limit,
        evaluates=config.eval_strategy != "no",
    )  # fmt: skip


def export_of(parts: Parts, header: Header) -> Export:
    """How theta is written for others to load."""
    if (weights := parts.engine.weights) is not None:
        return Export("model", lambda folder, theta: weights.save(folder, parts.tokenizer),
                      lambda folder, theta: (folder / "config.json").is_file())  # fmt: skip
    return Export(
        "adapter",
        partial(save_adapter, spec=parts.engine.spec, base_model=header.base_model, base=header.base),
        partial(is_saved, spec=parts.engine.spec),
    )
