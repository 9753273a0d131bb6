"""A client of a server that takes training jobs."""

import io
import json
import tarfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zotune.errors import InputError
from zotune.files import replace_folder

DEFAULT_SERVER = "http://127.0.0.1:30000"
TIMEOUT_S = 60.0


class JobsClient:
    """Training jobs of a server that was started with `--zotune-jobs`.

    Args:
        server: its address.
        api_key: the server's admin key, or its key where it has only that.

    Every method raises InputError, with the server's own sentence, where the server refuses or is not there.
    """

    def __init__(self, server: str = DEFAULT_SERVER, api_key: str | None = None) -> None:
        if urllib.parse.urlsplit(server).scheme not in ("http", "https"):
            raise InputError(f"--server: expected an address such as {DEFAULT_SERVER}, got {server!r}")
        self.server = server.rstrip("/")
        self.api_key = api_key

    def submit(self, *, records: Sequence[Mapping[str, Any]] | None = None, **settings: Any) -> dict[str, Any]:
        """Begin a job: settings of `zotune train` by their names, and `name`, `eval_records`, `stream`.

        Args:
            records: training records; or `train_data` names a file in the server's folder of data.

        Returns:
            The job as `job` gives it.
        """
        body = {**settings, **({} if records is None else {"records": list(records)})}
        found: dict[str, Any] = self._ask("POST", "", body)
        return found

    def jobs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._ask("GET", "")["jobs"]
        return found

    def job(self, name: str) -> dict[str, Any]:
        """State, step, loss, evaluations, tokens, and the step whose adapter the server answers by."""
        found: dict[str, Any] = self._ask("GET", f"/{_quoted(name)}")
        return found

    def pause(self, name: str) -> dict[str, Any]:
        return self._change(name, "pause")

    def resume(self, name: str) -> dict[str, Any]:
        return self._change(name, "resume")

    def cancel(self, name: str) -> dict[str, Any]:
        return self._change(name, "cancel")

    def add_records(self, name: str, records: Sequence[Mapping[str, Any]]) -> int:
        """Give more to learn from to a job with `stream`; how many it has been given so far."""
        found: int = self._ask("POST", f"/{_quoted(name)}/records", {"records": list(records)})["records"]
        return found

    def metrics(self, name: str) -> Iterator[dict[str, Any]]:
        """Steps and evaluations as they come, until the job ends; the last has the event `end`."""
        with self._open("GET", f"/{_quoted(name)}/metrics", None, timeout=None) as answer:
            event = ""
            for line in answer:
                kind, _, value = line.decode().rstrip("\n").partition(": ")
                if kind == "event":
                    event = value
                elif kind == "data":
                    yield {"event": event, **json.loads(value)}

    def adapter(self, name: str, folder: str | Path, best: bool = False) -> Path:
        """Write the adapter as PEFT's folder, in the place of what is there."""
        path = f"/{_quoted(name)}/adapter" + ("?best=true" if best else "")
        with self._open("GET", path, None) as answer:
            content = answer.read()
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            files = {
                member.name.rpartition("/")[2]: file.read()
                for member in archive
                if (file := archive.extractfile(member)) is not None
            }
        target = Path(folder)

        def write(new: Path) -> None:
            for file_name, data in files.items():
                (new / file_name).write_bytes(data)

        replace_folder(target, write)
        return target

    def _change(self, name: str, what: str) -> dict[str, Any]:
        found: dict[str, Any] = self._ask("POST", f"/{_quoted(name)}/{what}", {})
        return found

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        with self._open(method, path, body) as answer:
            return json.load(answer)

    def _open(self, method: str, path: str, body: Any, timeout: float | None = TIMEOUT_S) -> Any:
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        content = None if body is None else json.dumps(body, default=str).encode()
        request = urllib.request.Request(f"{self.server}/zotune/jobs{path}", content, headers, method=method)
        try:
            return urllib.request.urlopen(request, timeout=timeout)
        except urllib.error.HTTPError as error:
            raise InputError(f"{self.server}: {_reason(error)}") from None
        except OSError as error:
            raise InputError(f"--server: no answer from {self.server} ({getattr(error, 'reason', error)})") from None


def _quoted(name: str) -> str:
    return urllib.parse.quote(name, safe="")


def _reason(error: urllib.error.HTTPError) -> str:
    if error.code in (401, 403):
        return "the server wants another key (--api-key)"
    try:
        content = json.load(error)
    except ValueError:
        content = None
    if isinstance(content, Mapping) and isinstance(found := content.get("error"), Mapping):
        return str(found.get("message"))
    if error.code == 404:
        return "the server takes no training jobs; start it with --zotune-jobs DIR, where zotune is installed"
    return f"the server answers with status {error.code}"
