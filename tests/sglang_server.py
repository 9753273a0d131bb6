"""SGLang's own server in processes of its own, as a user starts it, on the CPU, for the tests and the benchmark."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zotune.engine.sglang.plugin.cpu import cores_of_ranks

START_LIMIT_S = 300


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


class Server:
    """What answers at a port of this machine."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.key: str | None = None

    def generate(self, prompts: Any, adapters: Any = None, num_tokens: int = 8, **options: Any) -> Any:
        """Greedy completions: SGLang's answer, one dictionary for each prompt of token ids."""
        sampling = {"max_new_tokens": num_tokens, "temperature": 0, "ignore_eos": True}
        self.key = options.pop("key", None)
        return self.post(
            "/generate", {"input_ids": prompts, "lora_path": adapters, "sampling_params": sampling, **options}
        )

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return json.load(answer)

    def stream(self, prompt: Sequence[int], adapter: str | None, num_tokens: int = 8) -> Iterator[dict[str, Any]]:
        sampling = {"max_new_tokens": num_tokens, "temperature": 0, "ignore_eos": True}
        body = {"input_ids": prompt, "lora_path": adapter, "sampling_params": sampling, "stream": True}
        with urllib.request.urlopen(self._request("/generate", body), timeout=120) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    yield json.loads(line.removeprefix(b"data: "))

    def flush(self) -> None:
        """Forget everything that is cached."""
        urllib.request.urlopen(self._request("/flush_cache", {}), timeout=60).close()

    def post(self, path: str, body: Any) -> Any:
        try:
            with urllib.request.urlopen(self._request(path, body), timeout=240) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            return json.load(error)

    def _request(self, path: str, body: Any) -> urllib.request.Request:
        content = {"Content-Type": "application/json"}
        if self.key:
            content["Authorization"] = f"Bearer {self.key}"
        return urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode(), content)


@contextlib.contextmanager
def serve(model: Path, adapters: Mapping[str, Path], log: Path, *flags: str, num_ranks: int = 1) -> Iterator[Server]:
    """A server of `model`, with the adapters by name, until the block ends; then none of its processes is left."""
    server = Server(free_port())
    command = [
        sys.executable, "-m", "sglang.launch_server", "--model-path", str(model), "--port", str(server.port),
        "--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch",
        "--grammar-backend", "none", "--disable-cuda-graph", "--dtype", "float32", "--skip-server-warmup",
        "--mem-fraction-static", "0.3", "--sleep-on-idle", "--log-level", "warning", "--tp-size", str(num_ranks),
    ]  # fmt: skip
    if adapters:
        command += ["--enable-lora", "--lora-backend", "torch_native", "--max-loras-per-batch", "4", "--lora-paths"]
        command += [f"{name}={folder}" for name, folder in adapters.items()]
    environment = {"OMP_NUM_THREADS": "1", **os.environ, **cores_of_ranks(num_ranks)}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, *flags], stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )
    try:
        _wait(server, process, log)
        yield server
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_LIMIT_S
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{server.port}/health", timeout=5).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server did not start:\n{log.read_text()[-4000:]}") from None
            time.sleep(0.2)
