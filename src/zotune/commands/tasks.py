"""List the built-in tasks."""

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from zotune.data.tasks import TASKS


@dataclass(frozen=True)
class Tasks:
    """List the built-in tasks with their templates, labels and data sets."""

    def run(self) -> None:
        table = Table(show_lines=True)
        for title in ("task", "prompt + invocation + answer", "labels", "data set"):
            table.add_column(title, overflow="fold")  # rather than cut: these are there to be copied
        for task in TASKS.values():
            answer = "" if task.labels else task.completion
            text = f"{task.template}{task.invocation}{answer}".replace("\n", "\\n")
            source = "comes with zotune" if task.demo else task.hub.path if task.hub else "your own (--train-data)"
            table.add_row(task.name, text, ", ".join(task.labels) or "-", source)
        Console(highlight=False, markup=False, emoji=False).print(table)
