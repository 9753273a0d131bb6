"""What happens to a run's journal when workers, machines and the driver are lost: it must be as if nothing was.

    python benchmarks/ray_faults.py --kills 50 --folder faults

A cluster of three nodes on this machine, two workers, the demo's model. Every row is compared to the bit with a run
that nobody disturbed; the table goes into docs/ray.md. What is in the folder already is not done again, so that it can
be done in turns of `--seconds`.
"""

import argparse
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.cluster_utils import Cluster
from ray_pages import publish

from zotune import Callback, mezo_finetune
from zotune.run.journal import read_journal

SETTINGS: dict[str, Any] = {
    "engine": "ray", "estimator": "one_sided", "directions": 4, "batch_size": 8, "max_train_samples": 64,
    "max_eval_samples": 16, "eval_steps": 50,
}  # fmt: skip


class Watched(Callback):
    """Holds the engine of a run, and how far the run is."""

    def __init__(self) -> None:
        self.engine: Any = None
        self.step = 0
        self.to_do: Callable[[], None] | None = None  # in the main thread, where Ray starts nodes

    def on_train_begin(self, trainer: Any) -> None:
        self.engine = trainer.engine

    def on_step_end(self, event: Any) -> None:
        self.step = event.step
        if self.to_do:
            self.to_do()
            self.to_do = None

    def pids(self) -> list[int]:
        crew = self.engine and self.engine._crew
        return [member.about.pid for member in list(crew.members) if member.about] if crew else []


class Faults:
    """A cluster, and runs on it that are disturbed from a thread."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.root, self.draw = options, options.folder, random.Random()
        self.began = time.monotonic()
        self.root.mkdir(exist_ok=True)
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 10**8})
        self.nodes = [self._add_node() for _ in range(2)]
        ray.init(address=self.cluster.address, log_to_driver=False, logging_level="ERROR")

    def _add_node(self) -> Any:
        return self.cluster.add_node(num_cpus=1, object_store_memory=10**8)

    def is_due(self, name: str) -> bool:
        """Whether a run is still to be made, and there is time for it."""
        return not (self.root / f"{name}.json").is_file() and time.monotonic() - self.began < self.options.seconds

    def run(
        self,
        name: str,
        disturb: Callable[[Watched, threading.Event], str] | None = None,
        workers: int = 2,
        steps: int | None = None,
        reference: str = "reference",
    ) -> None:
        if not self.is_due(name):
            return
        folder, watched, over = self.root / name, Watched(), threading.Event()
        shutil.rmtree(folder, ignore_errors=True)
        said = ["undisturbed"]

        def disturbing() -> None:
            while watched.step < 2 and not over.is_set():
                time.sleep(0.1)
            assert disturb
            said[0] = disturb(watched, over)

        thread = threading.Thread(target=disturbing, daemon=True)
        if disturb:
            thread.start()
        began = time.monotonic()
        mezo_finetune(
            "demo", num_steps=steps or self.options.steps, output_dir=str(folder), callbacks=[watched],
            ray={"num_workers": workers}, **SETTINGS,
        )  # fmt: skip
        took = time.monotonic() - began
        over.set()
        if disturb:
            thread.join()
        self.note(name, said[0], watched.engine.seats, took, reference)

    def note(self, name: str, what: str, seats: Any, took: float, reference: str = "reference") -> None:
        entries = _entries(self.root / name)
        found = "the same" if entries == _entries(self.root / reference) else "ANOTHER"
        row = [
            what, str(len(entries)), str(sum(seat.lost for seat in seats)) if seats else "all",
            str(sum(seat.late for seat in seats)) if seats else "-", "the reference" if name == reference else found,
            f"{took:.0f} s",
        ]  # fmt: skip
        (self.root / f"{name}.json").write_text(json.dumps(row), encoding="utf-8")
        print(name, *row, sep=" | ", flush=True)

    def kill(self, most: int) -> Callable[[Watched, threading.Event], str]:
        def disturb(watched: Watched, over: threading.Event) -> str:
            done, step = 0, watched.step
            while done < most and not over.wait(self.draw.uniform(0.0, 1.0)):
                if watched.step >= step and (pids := watched.pids()):
                    step = watched.step + self.draw.randint(1, 6)
                    try:
                        os.kill(self.draw.choice(pids), signal.SIGKILL)
                        done += 1
                    except ProcessLookupError:
                        continue
            return f"{done} workers killed (-9), one every few steps, at random moments"

        return disturb

    def stop(self, watched: Watched, over: threading.Event) -> str:
        pid = watched.pids()[0]
        os.kill(pid, signal.SIGSTOP)
        before, began = watched.step, time.monotonic()
        over.wait(30)
        steps, seconds = watched.step - before, time.monotonic() - began
        os.kill(pid, signal.SIGCONT)
        return f"a worker stopped (SIGSTOP) for {seconds:.0f} s, in which {steps} steps were made"

    def remove(self, watched: Watched, over: threading.Event) -> str:
        while (node := self._node_of(watched.pids())) is None:
            if over.wait(0.5):
                return "no node removed: none but the first held a worker"
        self.cluster.remove_node(node, allow_graceful=False)
        self.nodes.remove(node)
        removed_at = watched.step
        over.wait(20)
        watched.to_do = lambda: self.nodes.append(self._add_node())
        return f"one of 3 nodes removed after step {removed_at}, with its worker, and another one added 20 s later"

    def _node_of(self, pids: list[int]) -> Any:
        """A node that may be removed and has one of these workers."""
        raylets = {psutil.Process(pid).ppid() for pid in pids if psutil.pid_exists(pid)}
        return next((node for node in self.nodes if _raylet(node) in raylets), None)

    def kill_driver(self) -> None:
        if not self.is_due("driver"):
            return
        folder, kills, began = self.root / "driver", 0, time.monotonic()
        shutil.rmtree(folder, ignore_errors=True)
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
        flags += [f"--num-steps={self.options.steps}", f"--output-dir={folder}", "--ray.num-workers=2"]
        command = ["train", *flags, f"--ray.address={self.cluster.address}"]
        zotune = [sys.executable, "-c", "from zotune.cli import main; main()"]
        while True:
            with (self.root / "driver.log").open("a", encoding="utf-8") as log:
                driver = subprocess.Popen([*zotune, *command], stdout=log, stderr=log)
            goal = _steps(folder) + self.draw.randint(3, max(4, self.options.steps // 4))
            while driver.poll() is None and (kills >= 3 or _steps(folder) < goal):
                time.sleep(0.2)
            if driver.poll() is not None:
                break
            time.sleep(self.draw.uniform(0, 0.5))
            driver.kill()
            driver.wait()
            kills += 1
            command = ["resume", str(folder)]
        if driver.returncode:
            sys.exit(f"the driver ended with {driver.returncode}: see {self.root / 'driver.log'}")
        what = f"the driver killed (-9) {kills} times, and resumed"
        self.note("driver", what, None, time.monotonic() - began)

    def close(self) -> None:
        ray.shutdown()
        self.cluster.shutdown()


def _raylet(node: Any) -> int:
    """The number of its process, which is the parent of its workers."""
    pid: int = node.all_processes["raylet"][0].process.pid
    return pid


def _entries(folder: Path) -> Any:
    return read_journal(folder / "journal.jsonl")[1]


def _steps(folder: Path) -> int:
    path = folder / "journal.jsonl"
    return max(0, path.read_bytes().count(b"\n") - 1) if path.is_file() else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="at least so many, over some runs")
    parser.add_argument("--kills-a-run", type=int, default=13)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--folder", type=Path, default=Path("ray-faults"))
    parser.add_argument("--seconds", type=float, default=math.inf, help="no run begins after so many")
    options = parser.parse_args()
    faults = Faults(options)
    names = ["reference", "node", "driver", "longer", "stopped"]
    longer = 4 * options.steps  # than the time for which a worker is stopped
    try:
        faults.run("reference")
        faults.run("node", faults.remove, workers=3)
        faults.kill_driver()
        faults.run("longer", steps=longer, reference="longer")
        faults.run("stopped", faults.stop, steps=longer, reference="longer")
        for number in range(12):
            name = f"kills-{number}"
            faults.run(name, faults.kill(options.kills_a_run))
            names.append(name)
            if sum(int(row[0].split()[0]) for row in _rows(options.folder, names[5:])) >= options.kills:
                break
    finally:
        faults.close()
    header = ["what was done to a run", "steps", "workers lost", "late", "its journal", "took"]
    rows, kills = _rows(options.folder, names), _rows(options.folder, names[5:])
    num_kills = sum(int(row[0].split()[0]) for row in kills)
    publish(
        "faults", header, rows, f"Two workers, in the row of the nodes three; {num_kills} workers were killed in all."
    )


def _rows(folder: Path, names: list[str]) -> list[list[str]]:
    paths = [folder / f"{name}.json" for name in names]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]


if __name__ == "__main__":
    main()
