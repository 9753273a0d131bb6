"""The page and what it asks for, over HTTP on this machine alone: no framework, and nothing comes from elsewhere."""

import json
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

from zotune.board.reading import Runs
from zotune.errors import InputError

HOST = "127.0.0.1"
_NAMES = (HOST, "localhost")


def open_board(runs: Runs, port: int) -> ThreadingHTTPServer:
    """The server, bound but not serving yet; port 0 takes a free one, see its `server_port`.

    Raises:
        InputError: the port is in use.
    """

    class OfRuns(_Handler):
        answers: ClassVar = {
            "/api/runs": lambda query: runs.listed(),
            "/api/curves": lambda query: runs.curves(query),
            "/api/samples": lambda query: runs.samples(query),
        }

    try:
        return ThreadingHTTPServer((HOST, port), OfRuns)
    except OSError as error:
        raise InputError(f"--port: cannot listen on {port} ({error.strerror}); take another, or 0 for any") from error


class _Handler(BaseHTTPRequestHandler):
    answers: ClassVar[dict[str, Callable[[str], Any]]]

    def do_GET(self) -> None:
        # A page elsewhere whose name leads to this machine would have its own name here.
        if self.headers.get("Host", "").partition(":")[0] not in _NAMES:
            return self.send_error(HTTPStatus.FORBIDDEN)
        asked = urlsplit(self.path)
        if asked.path == "/":
            page = resources.files("zotune").joinpath("board", "page.html").read_bytes()
            return self._send(page, "text/html; charset=utf-8")
        answer = self.answers.get(asked.path, lambda query: None)(parse_qs(asked.query).get("run", [""])[0])
        if answer is None:
            return self.send_error(HTTPStatus.NOT_FOUND)
        return self._send(json.dumps(answer).encode(), "application/json")

    def _send(self, content: bytes, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", "default-src 'self' 'unsafe-inline'")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Not a line for every look of the page."""
