"""List the built-in tasks."""

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from zotune.data.tasks import TASKS, Task


@dataclass(frozen=True)
class Tasks:
    """List the built-in tasks with their templates, labels and data sets."""

    def run(self) -> None:
        table = Table(show_lines=True)
        for title in ("task", "prompt + invocation + answer", "labels", "data set"):
            table.add_column(title, overflow="fold")  # rather than cut: these are there to be copied
        for task in TASKS.values():
            answer = "" if task.classifies else task.completion
            text = f"{task.template}{task.invocation}{answer}".replace("\n", "\\n")
            labels = ", ".join(task.labels or (f"{{{name}}}" for name in task.choice_fields)) or "-"
            table.add_row(task.name, text, labels, _source(task))
        Console(highlight=False, markup=False, emoji=False).print(table)


def _source(task: Task) -> str:
    if task.hub is None:
        return "comes with zotune" if task.demo else "your own (--train-data)"
    return task.hub.path if task.hub.subset is None else f"{task.hub.path}:{task.hub.subset}"
