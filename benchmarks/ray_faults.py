"""What happens to a run's journal when workers, machines and the driver are lost: it must be as if nothing was.

    python benchmarks/ray_faults.py --kills 50

A cluster of three nodes on this machine, two workers, the demo's model. Every row is compared to the bit with a run
that nobody disturbed; the table goes into docs/ray.md.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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

    def __init__(self, options: argparse.Namespace, root: Path) -> None:
        self.options, self.root, self.draw = options, root, random.Random(options.seed)
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 10**8})
        self.nodes = [self.cluster.add_node(num_cpus=1, object_store_memory=10**8) for _ in range(2)]
        self.address = self.cluster.address
        ray.init(address=self.address, log_to_driver=False, logging_level="ERROR")
        self.rows: list[list[str]] = []
        self.num_kills = 0

    def run(
        self, name: str, disturb: Callable[[Watched, threading.Event], str] | None = None, workers: int = 2
    ) -> Path:
        folder, watched, over = self.root / name, Watched(), threading.Event()
        said = [""]

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
            "demo", num_steps=self.options.steps, output_dir=str(folder), callbacks=[watched],
            ray={"num_workers": workers}, **SETTINGS,
        )  # fmt: skip
        took = time.monotonic() - began
        over.set()
        if disturb:
            thread.join()
        self.note(name, folder, said[0], watched.engine, took)
        return folder

    def note(self, name: str, folder: Path, what: str, engine: Any, took: float) -> None:
        entries = read_journal(folder / "journal.jsonl")[1]
        if name == "reference":
            self.reference = entries
        same = entries == self.reference
        seats = engine.seats if engine else []
        lost = sum(seat.lost for seat in seats)
        self.rows.append([
            what or "undisturbed", str(len(entries)), str(lost) if engine else "all",
            str(sum(seat.late for seat in seats)), "the same" if same else "ANOTHER", f"{took:.0f} s",
        ])  # fmt: skip
        header = ["what was done to a run", "steps", "workers lost", "late", "its journal", "took"]
        publish("faults", header, self.rows, "Two workers where nothing else is said.")

    def kill(self, most: int) -> Callable[[Watched, threading.Event], str]:
        def disturb(watched: Watched, over: threading.Event) -> str:
            done = 0
            while done < most and not over.wait(self.draw.uniform(1.0, 9.0)):
                if pids := watched.pids():
                    try:
                        os.kill(self.draw.choice(pids), signal.SIGKILL)
                        done += 1
                    except ProcessLookupError:
                        continue
            self.num_kills += done
            return f"{done} workers killed (-9), at random moments"

        return disturb

    def stop(self, watched: Watched, over: threading.Event) -> str:
        pid = watched.pids()[0]
        os.kill(pid, signal.SIGSTOP)
        before = watched.step
        over.wait(30)
        steps = watched.step - before
        os.kill(pid, signal.SIGCONT)
        return f"a worker stopped (SIGSTOP) for 30 s, in which {steps} steps were made"

    def remove(self, watched: Watched, over: threading.Event) -> str:
        self.cluster.remove_node(self.nodes.pop(0))
        over.wait(20)
        watched.to_do = lambda: self.nodes.append(self.cluster.add_node(num_cpus=1, object_store_memory=10**8))
        return "one of 3 nodes removed, with its worker, and another one added 20 s later"

    def kill_driver(self) -> None:
        folder, kills, began = self.root / "driver", 0, time.monotonic()
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
        flags += [f"--num-steps={self.options.steps}", f"--output-dir={folder}", "--ray.num-workers=2"]
        command = ["train", *flags, f"--ray.address={self.address}"]
        zotune = [sys.executable, "-c", "from zotune.cli import main; main()"]
        while True:
            driver = subprocess.Popen([*zotune, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            before = _steps(folder)
            goal = before + self.draw.randint(3, max(4, self.options.steps // 4))
            while driver.poll() is None and (kills >= 3 or _steps(folder) < goal):
                time.sleep(0.2)
            if driver.poll() is not None:
                break
            time.sleep(self.draw.uniform(0, 0.5))
            driver.kill()
            driver.wait()
            kills += 1
            command = ["resume", str(folder)]
        what = f"the driver killed (-9) {kills} times, and resumed"
        self.note("driver", folder, what, None, time.monotonic() - began)

    def close(self) -> None:
        ray.shutdown()
        self.cluster.shutdown()


def _steps(folder: Path) -> int:
    path = folder / "journal.jsonl"
    return max(0, path.read_bytes().count(b"\n") - 1) if path.is_file() else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--kills-a-run", type=int, default=17)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="zotune-faults-"))
    faults = Faults(options, root)
    try:
        faults.run("reference")
        number = 0
        while faults.num_kills < options.kills and number < 12:
            faults.run(f"kills-{number}", faults.kill(min(options.kills_a_run, options.kills - faults.num_kills)))
            number += 1
        faults.kill_driver()
        faults.run("node", faults.remove, workers=3)
        faults.run("stopped", faults.stop)
    finally:
        faults.close()
        shutil.rmtree(root, ignore_errors=True)
    print(json.dumps({"kills": faults.num_kills, "all the same": all(row[4] == "the same" for row in faults.rows)}))


if __name__ == "__main__":
    main()
