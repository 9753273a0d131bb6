"""Settings to begin with on one's own data: what the records look like, and a commented file that trains on them.

The records' fields decide what is trained, as in `zotune train`; where their names do not say it, what is in them does.
What is written has been tried on the records: it is what `load_data` takes.
"""

import json
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from zotune.assemble.data import load_data
from zotune.config.reading import make_config
from zotune.config.settings import Config
from zotune.data.class_names import ClassName
from zotune.data.records import Record, load_records
from zotune.data.task_choice import choose_task
from zotune.data.tasks import ALIASES, TASKS, Task
from zotune.data.unused import unused_fields
from zotune.errors import InputError

MOST_LABELS = 30
CHARACTERS_A_TOKEN = 4  # of English, roughly
SHOWN = 60  # characters of a value
INVOCATION = "\nAnswer:"
WHY_INVOCATION = (
    "ends every prompt; the adapter acts from here on (scope activated), so that prompts are computed once; take what "
    'your label words go on with, such as " It was"'
)
LOOKED_AT = 1000  # records


@dataclass
class Guess:
    """Settings that the data call for, and what to say of each."""

    task: Task
    what: str
    settings: dict[str, Any] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)

    def put(self, name: str, value: Any, why: str) -> None:
        self.settings[name], self.why[name] = value, why


def first_settings(source: str, model: str) -> str:
    """A TOML file, as text, that trains `model` on the data.

    Raises:
        InputError: nothing can be read there, or nothing in the records can be learnt.
    """
    records = load_records(source, "DATA")
    looked = records[:LOOKED_AT]
    guess = _guess(looked)
    config = make_config({"train_data": source, **guess.settings})
    data = load_data(config) if len(records) > 1 else None
    return _written(source, model, guess, records, looked, config, len(data.train) if data else len(records))


def _guess(records: Sequence[Record]) -> Guess:
    sample = records[0].fields
    try:
        guess = _by_task(choose_task(None, sample=sample), records)
    except InputError:
        guess = _by_content(records)
    if not guess.task.is_chat and guess.task.template and "template" not in guess.settings:
        _take_all_content(guess, records)
    return guess


def _by_task(task: Task, records: Sequence[Record]) -> Guess:
    """The names of the fields say it."""
    what = {
        "chat": "chats, of which the assistant's turns are learnt",
        "chat_pair": "two answers in chats, of which the first is learnt to be the better",
        "preference": "two answers to each prompt, of which the first is learnt to be the better",
        "lm": "plain texts, of which every token is learnt",
    }
    return Guess(task, what.get(task.name, "completions of prompts"), {"task": task.name}, {"task": ""})


def _by_content(records: Sequence[Record]) -> Guess:
    """What is in the fields says it: a text and a label, two texts, or a text."""
    texts = sorted(_texts(records), key=lambda name: -_median_length(records, name))
    text = _known("text", texts) or next(iter(texts), None)
    if text is None:
        names = ", ".join(map(str, records[0].fields))
        raise InputError(f"DATA: no field of the records holds texts; they have {names}")
    labels = {name: values for name in records[0].fields if name != text and (values := _classes(records, name))}
    label = _known("label", list(labels)) or next(iter(labels), None)
    if label is not None:
        return _classification(records, text, label, labels[label])
    others = [name for name in texts if name != text]
    if others:
        prompt, completion = sorted((text, others[0]), key=list(records[0].fields).index)
        guess = Guess(TASKS["completion"], "completions of prompts", {"task": "completion"}, {"task": ""})
        guess.put("fields", [f"prompt={prompt}", f"completion={completion}"], "what the data calls them")
        return guess
    guess = Guess(TASKS["lm"], "plain texts, of which every token is learnt", {"task": "lm"}, {"task": ""})
    guess.put("fields", [f"text={text}"], "what the data calls it")
    return guess


def _classification(records: Sequence[Record], text: str, label: str, values: Counter[Any]) -> Guess:
    names = sorted(values, key=lambda value: (isinstance(value, str), value))
    first = records[0].fields[label]
    if isinstance(first, ClassName):
        names = list(first.names)
    numbers = all(str(name).lstrip("-").isdigit() for name in names)
    if numbers and [int(name) for name in names] == list(range(len(names))):
        words = ["no", "yes"] if len(names) == 2 else [chr(ord("A") + index) for index in range(len(names))]
        why = "PUT THE WORDS HERE that say what 0, 1, ... mean: the model knows words, and these are placeholders"
    elif numbers:
        words = [f"{name}={chr(ord('A') + index)}" for index, name in enumerate(names)]
        why = "PUT THE WORDS HERE, behind each =, that say what these labels mean: those are placeholders"
    else:
        words = [f"{name}={str(name).replace('_', ' ').replace('=', ' ').strip()}" for name in names]
        why = "label=WORD for each label: common words of one token are the quickest, and the best known to the model"
    guess = Guess(Task("classification", "{text}"), "a classification: which of the label words follows the text")
    guess.put("labels", words, why)
    renamed = [f"{role}={name}" for role, name in (("text", text), ("label", label)) if name not in ALIASES[role]]
    if renamed:
        guess.put("fields", renamed, "what the data calls the text and the label")
    guess.put("invocation", INVOCATION, WHY_INVOCATION)
    return guess


def _take_all_content(guess: Guess, records: Sequence[Record]) -> None:
    """Where a run would be refused because it left out content, a prompt of all texts."""
    config = make_config(guess.settings)
    try:
        unused_fields(records, _task_of(guess), config.field_names, chosen=False)
    except InputError:
        used = set(config.field_names.values()) | {"completion", "output", "response"}
        content = [name for name in _texts(records) if name not in used - {config.field_names.get("text")}]
        answers = {name.partition("=")[2] for name in guess.settings.get("fields", ()) if name.startswith("label=")}
        content = [name for name in content if name not in answers and not name.startswith("label")]
        template = "\n".join(f"{{{name}}}" for name in content)
        guess.settings["fields"] = [pair for pair in guess.settings.get("fields", ()) if not pair.startswith("text=")]
        if not guess.settings["fields"]:
            del guess.settings["fields"]
        guess.put("template", template, "the prompt, of all fields with texts; leave out those that are not needed")


def _task_of(guess: Guess) -> Task:
    given = {name: guess.settings[name] for name in ("labels", "template", "invocation") if name in guess.settings}
    return choose_task(guess.settings.get("task"), **given)


# ---- what the records look like ----------------------------------------------------------------------------------


def _texts(records: Sequence[Record]) -> list[str]:
    """The fields that hold texts, and not the names of a few classes."""
    return [
        name
        for name in records[0].fields
        if all(isinstance(record.fields.get(name), str) for record in records)
        and not isinstance(records[0].fields[name], ClassName)
        and not _classes(records, name)
    ]


def _classes(records: Sequence[Record], name: str) -> Counter[Any]:
    """How often each value of a field is there; empty where they are no labels."""
    values = [record.fields.get(name) for record in records]
    if not all(
        isinstance(value, str | int | bool) or (isinstance(value, float) and value % 1 == 0) for value in values
    ):
        return Counter()
    counts = Counter(int(value) if isinstance(value, float | bool) else value for value in values)
    few = 2 <= len(counts) <= MOST_LABELS and (len(counts) <= len(values) / 4 or len(counts) == 2)
    long = any(isinstance(value, str) and (len(value) > SHOWN or not value.strip()) for value in counts)
    return counts if few and not long else Counter()


def _known(role: str, names: Sequence[str]) -> str | None:
    return next((alias for alias in ALIASES[role] if alias in names), None)


def _length(value: Any) -> int:
    return len(value if isinstance(value, str) else json.dumps(value, default=str))


def _median_length(records: Sequence[Record], name: str) -> float:
    return statistics.median(_length(record.fields[name]) for record in records)


def _described(records: Sequence[Record]) -> list[str]:
    """A line on each field."""
    lines = []
    for name in records[0].fields:
        counts = _classes(records, name)
        if counts:
            common = ", ".join(f"{value} ({count})" for value, count in counts.most_common(6))
            lines.append(f"{name}: {len(counts)} values: {common}{', ...' if len(counts) > 6 else ''}")
            continue
        values = [record.fields.get(name) for record in records]
        lengths = sorted(_length(value) for value in values)
        kind = "texts" if all(isinstance(value, str) for value in values) else f"{type(values[0]).__name__} values"
        shown = " ".join(str(values[0]).split())
        shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
        lines.append(
            f"{name}: {kind} of {lengths[0]:,} to {lengths[-1]:,} characters, half of them below "
            f"{lengths[len(lengths) // 2]:,}; such as {shown}"
        )
    return lines


# ---- the file ----------------------------------------------------------------------------------------------------


def _written(
    source: str, model: str, guess: Guess, records: Sequence[Record], looked: Sequence[Record], config: Config, num: int
) -> str:
    longest = max(sum(_length(value) for value in record.fields.values()) for record in looked)
    passes = config.num_steps * config.batch_size / max(1, num)
    lines = [
        f"# Made by `zotune init` from {source}, for: zotune train FILE",
        f"# {len(records):,} records; of the first {len(looked):,}:",
        *(f"#   {line}" for line in _described(looked)),
        "",
        f"# {guess.what[0].upper()}{guess.what[1:]}.",
        _line("model", model, "a causal model: a hub id, a folder, a GGUF file, or smollm2 or demo, which need no hub"),
        _line("train_data", source, ""),
        "# eval_data = \"FILE\"  # where none is named, a tenth of the records is held out",
        *(_line(name, value, guess.why[name]) for name, value in guess.settings.items()),
        "",
        f"# The longest record has about {math.ceil(longest / CHARACTERS_A_TOKEN):,} tokens; prompts lose their start "
        "beyond:",
        "# max_length = 2048",
        "",
        "# How long: all that is below is what holds without it.",
        _line("num_steps", config.num_steps, f"{passes:,.1f} passes over {num:,} examples; or num_train_epochs"),
        _line("batch_size", config.batch_size, ""),
        _line("eval_steps", config.eval_steps, ""),
        _line("max_eval_samples", config.max_eval_samples, ""),
        "# learning_rate = 3e-3  # chosen by the method and the size of the model; the log names it",
        f"# scope = \"{'activated' if _acts_late(guess) else 'everywhere'}\"  # {_why_scope(guess)}",
        f"# objective = \"{_task_of(guess).objective}\"",
        "# output_dir = \"DIR\"  # where none is named, output/TASK-MODEL-DATE-TIME",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _acts_late(guess: Guess) -> bool:
    return guess.task.is_chat or "invocation" in guess.settings


def _why_scope(guess: Guess) -> str:
    if guess.task.is_chat:
        return "the start of an answer switches the adapter on, so that conversations are computed once"
    return (
        "the invocation switches the adapter on" if _acts_late(guess) else "name an invocation to compute prompts once"
    )


def _line(name: str, value: Any, why: str) -> str:
    written = f"[{', '.join(map(_toml, value))}]" if isinstance(value, list) else _toml(value)
    return f"{name} = {written}" + (f"  # {why}" if why else "")


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
