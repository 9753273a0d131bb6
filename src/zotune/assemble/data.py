"""The data of a run: which records, split and sampled how, in the words of which task. No model is needed yet."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase as Tokenizer

from zotune.config.settings import Config
from zotune.data.chat import in_words
from zotune.data.demo import demo_path
from zotune.data.demonstrations import demonstrations_text, draw_demonstrations
from zotune.data.few_shot import draw_per_class
from zotune.data.records import Record, load_records, sample_records, split_records
from zotune.data.task_choice import check_has_labels, choose_task
from zotune.data.tasks import Task
from zotune.data.texts import TextExample, expand, labels_of, to_texts
from zotune.data.unused import unused_fields
from zotune.errors import InputError

HELD_OUT_SHARE = 0.1
logger = logging.getLogger("zotune")


@dataclass(frozen=True)
class Data:
    """The task of a run, and its records in the task's words."""

    task: Task
    train: list[TextExample]
    evaluation: list[TextExample]
    demonstrations: str = ""
    """What stands before every prompt."""

    def in_words(self, tokenizer: Tokenizer) -> "Data":
        """Chats in the words of the model's chat template."""
        task, texts = in_words(self.task, [*self.train, *self.evaluation], tokenizer)
        return replace(self, task=task, train=texts[: len(self.train)], evaluation=texts[len(self.train) :])


def load_data(config: Config, train_data: Any = None, eval_data: Any = None) -> Data:
    """Read, split and sample the records; data given from Python take the place of those that `config` names.

    Raises:
        InputError: no such data, or a record that does not fit the task; with the option, or file and line.
    """
    if config.stream_data is not None and not Path(config.stream_data).expanduser().is_file():
        raise InputError(f"--stream-data: there is no file {config.stream_data}; make one, which may be empty")
    train_source = config.train_data if train_data is None else train_data
    eval_source = config.eval_data if eval_data is None else eval_data
    train = load_records(train_source, "--train-data") if train_source is not None else []
    task = task_of(config, train)
    if config.num_per_class is not None:
        check_has_labels("--num-per-class", task)
    own_train, own_eval = own_data(task)
    if not train:
        if own_train is None:
            raise InputError(f"--train-data: task {task.name} has no data set of its own; name a file or data set")
        train = load_records(own_train, "--train-data", task.hub.train if task.hub else "train")
        if eval_source is None and _holds_out(config):
            eval_source = own_eval
    evaluation: list[Record] = []
    if eval_source is not None:
        split = task.hub.evaluation if task.hub and eval_source is own_eval else "test"
        evaluation = load_records(eval_source, "--eval-data", split)
    elif _holds_out(config):
        if len(train) < 2:
            raise InputError("--train-data: one record cannot be split; give --eval-data too")
        train, evaluation = split_records(train, HELD_OUT_SHARE, config.data_seed)
        logger.info("no evaluation data given: %d of the training records are held out for it", len(evaluation))
    names = config.field_names
    train, evaluation = expand(train, task, names), expand(evaluation, task, names) if evaluation else []
    for source, records in ((train_source, train), (eval_source, evaluation)):
        if source is not None:
            check_used(records, task, config)
    shown, train = draw_demonstrations(train, config.num_demonstrations, config.data_seed, task)
    train, evaluation = _drawn(train, evaluation, task, config)
    demonstrations = demonstrations_text(to_texts(shown, task, names), task)
    return Data(task, to_texts(train, task, names), to_texts(evaluation, task, names), demonstrations)


def _holds_out(config: Config) -> bool:
    """Whether a part of the training data is evaluated on, where there are no other data for that."""
    return config.num_per_class is None and config.eval_strategy != "no"


def _drawn(
    train: list[Record], evaluation: list[Record], task: Task, config: Config
) -> tuple[list[Record], list[Record]]:
    """What is trained on and what is evaluated on; where there is nothing for that yet, some of `train` are."""
    if (num := config.num_per_class) is not None:
        labels, hold_out = labels_of(train, task, config.field_names), not evaluation and config.eval_strategy != "no"
        train, others = draw_per_class(train, labels, num, config.data_seed, task, hold_out)
        if hold_out:
            evaluation = others
            logger.info("no evaluation data given: %d training records of each label are held out for it", num)
    train = sample_records(train, config.max_train_samples, config.data_seed, "train")
    if config.max_eval_samples and config.max_eval_samples < len(evaluation):
        logger.info("evaluating on %d of %d records (--max-eval-samples)", config.max_eval_samples, len(evaluation))
    return train, sample_records(evaluation, config.max_eval_samples, config.data_seed, "eval")


def load_demonstrations(config: Config, task: Task) -> str:
    """What stands before every prompt: those of `load_data`, where the examples themselves are not needed.

    Raises:
        InputError: no training data, or a record that does not fit the task.
    """
    if not config.num_demonstrations:
        return ""
    own, _ = own_data(task)
    source = own if config.train_data is None else config.train_data
    if source is None:
        raise InputError("--train-data: name the data that --num-demonstrations are to be drawn from")
    records = load_records(source, "--train-data", task.hub.train if task.hub else "train")
    if config.train_data is not None and config.eval_data is None and _holds_out(config):
        records, _ = split_records(records, HELD_OUT_SHARE, config.data_seed)
    records = expand(records, task, config.field_names)
    shown, _ = draw_demonstrations(records, config.num_demonstrations, config.data_seed, task)
    return demonstrations_text(to_texts(shown, task, config.field_names), task)


def check_used(records: list[Record], task: Task, config: Config) -> None:
    """Refuse to leave out content, and name what else is left out."""
    if config.judges_texts:  # rewards may use any column
        return
    names = config.field_names
    chosen = (
        config.task is not None
        or config.template is not None
        or bool(set(names) & set(task.prompt_fields or task.fields))
    )
    if (sentence := unused_fields(records, task, names, chosen)) is not None:
        logger.warning(sentence)


def own_data(task: Task) -> tuple[Any, Any]:
    """The training and evaluation data that a task comes with; None where it has none."""
    if task.demo:
        return demo_path("train.jsonl"), demo_path("eval.jsonl")
    return task.hub, task.hub


def task_of(config: Config, records: list[Record]) -> Task:
    """The task that the settings say, or else the fields of the records.

    Raises:
        InputError: options that do not make a task, or fields that no task has.
    """
    sample = dict(records[0].fields) if records else None
    if sample:  # under the names that --fields gives them
        sample |= {role: sample.pop(name) for role, name in config.field_names.items() if name in sample}
    return choose_task(
        config.task, template=config.template, invocation=config.invocation, labels=config.labels,
        choice_fields=config.choice_fields, separator=config.label_separator, sample=sample,
        for_reward=config.judges_texts,
    )  # fmt: skip
