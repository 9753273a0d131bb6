"""Records that come in while a run goes on: what is learned from is the next of them, in their order.

A batch is a function of the file and of the step alone, so that a run which goes on learns what it would have learned.
"""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

from zotune.config.settings import Config
from zotune.data.records import Record
from zotune.data.tasks import Task
from zotune.data.texts import TextExample, expand, to_texts
from zotune.errors import InputError
from zotune.zo.protocol import Example

PERIOD_S = 0.2
logger = logging.getLogger("zotune")


class RecordStream:
    """The records of a file that grows by whole lines of JSON.

    Args:
        encode: makes examples of texts.
    """

    def __init__(self, config: Config, task: Task, encode: Callable[[list[TextExample]], list[Example]]) -> None:
        assert config.stream_data is not None
        self.path = Path(config.stream_data).expanduser()
        self._names, self._task, self._encode = config.field_names, task, encode
        self._examples: list[Example] = []
        self._read = self._lines = 0

    def batch(self, first: int, count: int) -> list[Example]:
        """Examples `first` to `first + count` of the stream, as soon as they are there."""
        self._update()
        if len(self._examples) < first + count:
            logger.info("waiting for records: %d are there, %d are needed", len(self._examples), first + count)
        while len(self._examples) < first + count:
            time.sleep(PERIOD_S)
            self._update()
        return self._examples[first : first + count]

    def _update(self) -> None:
        with self.path.open("rb") as file:
            file.seek(self._read)
            *lines, _ = file.read().split(b"\n")
        for line in lines:
            self._read += len(line) + 1
            self._lines += 1
            try:
                self._examples += self._examples_of(line, f"{self.path}:{self._lines}")
            except InputError as error:  # one of many, and the others are to be learned from
                logger.warning("left out: %s", error)

    def _examples_of(self, line: bytes, where: str) -> list[Example]:
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where}: {error}") from None
        if not isinstance(fields, dict):
            raise InputError(f"{where}: expected an object with fields, got {type(fields).__name__}")
        records = expand([Record(fields, where)], self._task, self._names)
        return self._encode(to_texts(records, self._task, self._names))
