"""Records that come in while a job runs."""

from collections.abc import Mapping
from typing import Any

from zotune.data.records import json_lines
from zotune.errors import InputError
from zotune.files import LineFile
from zotune.jobs.folder import JobFolder


def append_records(job: JobFolder, body: Any) -> int:
    """Append records to what the job learns from; how many there are now.

    Raises:
        InputError: the job takes none, or they are no records.
    """
    if not job.state.stream:
        raise InputError(f'job {job.state.name} takes no records: it was not begun with "stream": true')
    rows = body.get("records") if isinstance(body, Mapping) else body
    if not isinstance(rows, list) or not rows or not all(isinstance(row, Mapping) for row in rows):
        raise InputError("records: expected a list of objects with the fields of an example")
    file = LineFile(job.records)
    try:
        file.append(json_lines("records", rows), durable=True)
    finally:
        file.close()
    return job.records.read_bytes().count(b"\n")
