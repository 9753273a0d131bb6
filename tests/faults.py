"""A disk that fails, at every operation: what a run, a resume, an --overwrite, a study and a replay leave behind.

    python tests/faults.py            # a spread of trials over all operations and faults
    python tests/faults.py --all      # every operation with every fault

Each trial is a command in a forked process in which tests/faults.c counts what is done to files below one folder. At
the n-th operation the process is killed, killed with half of a write done, told that the disk is full from there on, or
that this operation failed. Then the same command, or `resume`, is run on a good disk. What is there in the end must be
what the undisturbed command leaves: the same bytes of journals and adapters, the same metrics but for times, no other
files. A command that was refused must have said so in one sentence. It shows that nothing is lost to a process that
ends, nor to a disk that refuses; what a power cut takes is not tried here.
"""

import argparse
import ctypes
import gc
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
FAULTS = {"kill": 1, "half": 2, "full": 3, "broken": 4}
TIMED = re.compile(
    r'"(time_s|step_time_s|train_time_s|steps_per_s|seconds|peak_memory_bytes|tokens_\w+|forward_passes|tokens|'
    r'kv_reuse)": [-0-9.e]+'
)


@dataclass(frozen=True)
class Scenario:
    """A command on a folder that `before` has made, and what to do after it was disturbed, until nothing is left to."""

    name: str
    before: Path | None
    command: list[str]
    repair: Callable[[Path], list[str]]


def child(arguments: list[str], folder: Path, said: Path, operation: int, fault: int) -> tuple[int, int]:
    """Run a command in a fork of this process: its exit code, minus the signal that ended it, and its operations."""
    reading, writing = os.pipe()
    number = os.fork()
    if number == 0:
        code = 1
        try:
            output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            from zotune.cli import main

            library = ctypes.CDLL(None)
            library.faults_arm(os.fsencode(folder), ctypes.c_long(operation), fault)
            try:
                main(arguments)
                code = 0
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else 1
            except BaseException:
                import traceback

                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os.write(writing, str(library.faults_count()).encode())
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        counted = pipe.read()
    _, status = os.waitpid(number, 0)
    return os.waitstatus_to_exitcode(status), int(counted or 0)


def state(folder: Path) -> dict[str, object]:
    """What a folder holds, by path: bytes, and text without times where there are some. Pictures only by name."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            found[name] = None
        elif path.suffix in (".json", ".jsonl", ".md", ".toml") and path.name != "journal.jsonl":
            text = path.read_text(errors="replace")
            text = re.sub(r"\d+\.\d+ \||\d+ \||\d+\.\d+", "", text) if path.suffix == ".md" else text
            found[name] = TIMED.sub(r'"\1": 0', text)
        else:
            found[name] = None if path.suffix in (".png", ".svg") else path.read_bytes()
    return found


class Bench:
    """The scenarios, each with what it leaves undisturbed, below one folder."""

    def __init__(self, place: Path) -> None:
        self.place, self.folder, self.said = place, place / "work", place / "said"
        self.scenarios = list(self._scenarios())

    def _scenarios(self) -> Iterator[Scenario]:
        from tests.conftest import REVIEWS, make_model, make_tokenizer

        model, data = self.place / "model", self.place / "reviews.jsonl"
        make_model("opt").save_pretrained(model)
        make_tokenizer().save_pretrained(model)
        data.write_text("".join(json.dumps(review) + "\n" for review in REVIEWS))
        settings = {
            "model": str(model), "train_data": str(data), "invocation": " It was", "batch_size": 2, "directions": 1,
            "eval_steps": 2, "lora_rank": 1, "target_modules": ["q_proj"], "num_threads": 1, "max_eval_samples": 2,
            "max_train_samples": 8, "engine": "plain",
        }  # fmt: skip
        flags = [part for name, value in settings.items() for part in (
            [f"--{name}", *value] if isinstance(value, list) else [f"--{name}={value}"])]  # fmt: skip
        flags += ["--labels", "terrible", "great"]
        run = self.folder / "run"
        train = ["train", *flags, "--num-steps=4", "--learning-rate=0.01", f"--output-dir={run}"]

        def resumed(folder: Path) -> list[str]:
            return ["resume", str(run)] if (run / "journal.jsonl").exists() else train

        yield Scenario("train", None, train, resumed)
        self._run(["train", *flags, "--num-steps=3", "--seed=9", f"--output-dir={run}"])
        old = self._keep("old")
        yield Scenario("overwrite", old, [*train, "--overwrite"], lambda folder: [*train, "--overwrite"])
        self._run(train)
        journal = run / "journal.jsonl"
        journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:4]) + b'{"step": 4, "lo')
        shutil.rmtree(run / "plots")
        (run / "summary.json").unlink()
        begun = self._keep("begun")
        yield Scenario("resume", begun, ["resume", str(run)], lambda folder: ["resume", str(run)])
        finished = self.place / "finished"
        self._run(["train", *flags, "--num-steps=2", f"--output-dir={finished}"])
        replay = ["replay", str(finished), "--output-dir", str(self.folder / "adapter")]
        yield Scenario("replay", None, replay, lambda folder: replay)
        study = self.place / "study.toml"
        lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
        study.write_text("\n".join([
            f'output_dir = "{self.folder / "study"}"', "budget = { steps = 2 }", "[settings]", *lines,
            'labels = ["terrible", "great"]', "[tasks.reviews]", f'test_data = "{data}"', "test_samples = 2",
            "[methods.slow]", "learning_rate = 1e-3", "[methods.quick]", "learning_rate = 1e-2",
        ]))  # fmt: skip
        compare = ["compare", str(study)]
        yield Scenario("compare", None, compare, lambda folder: compare)

    def _run(self, command: list[str], operation: int = 0, fault: int = 0) -> tuple[int, int]:
        return child(command, self.folder, self.said, operation, fault)

    def _keep(self, name: str) -> Path:
        shutil.move(self.folder, self.place / name)
        return self.place / name

    def reset(self, scenario: Scenario) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(scenario.before, self.folder) if scenario.before else self.folder.mkdir()

    def undisturbed(self, scenario: Scenario) -> tuple[dict[str, object], int]:
        """What the command leaves, and how many operations it takes."""
        self.reset(scenario)
        code, count = self._run(scenario.command)
        assert code == 0, self.said.read_text()
        assert count > 0
        return state(self.folder), count

    def trial(self, scenario: Scenario, right: dict[str, object], operation: int, fault: str) -> str | None:
        """What is wrong after one trial; None where all is well."""
        self.reset(scenario)
        before = state(self.folder)
        code, _ = self._run(scenario.command, operation, FAULTS[fault])
        said = self.said.read_text()
        if fault in ("full", "broken") and (code < 0 or "Traceback" in said or (code and "zotune: " not in said)):
            return f"no sentence, exit code {code}: {said[-1500:]}"
        if fault in ("kill", "half") and code != -9:
            return f"not killed, exit code {code}"
        if scenario.name == "overwrite":
            journal = self.folder / "run" / "journal.jsonl"
            new = right["run/journal.jsonl"]
            assert isinstance(new, bytes)
            if journal.exists() and not new.startswith(journal.read_bytes().splitlines(keepends=True)[0]):
                now = state(self.folder)
                if lost := [name for name in before if now.get(name, 0) != before[name]]:
                    return f"the old run has lost {lost}"
        is_done = code == 0 or scenario.name == "replay"  # what stands in its place is not replayed over
        if is_done and state(self.folder) == right:
            return None
        code, _ = self._run(scenario.repair(self.folder))
        if code:
            return f"not gone on with, exit code {code}: {self.said.read_text()[-1500:]}"
        found = state(self.folder)
        if wrong := [name for name in sorted(found.keys() | right.keys()) if found.get(name, 0) != right.get(name, 0)]:
            first = wrong[0]
            return f"other than undisturbed: {wrong}\n{str(found.get(first))[:600]}\n{str(right.get(first))[:600]}"
        return None


def warm() -> None:
    """Import what a command imports, so that a fork has it. Pictures are not drawn, which takes seconds."""
    import datasets  # noqa: F401
    import matplotlib.figure
    import rich.console
    import rich.progress  # noqa: F401
    import torch
    import transformers.models.opt.modeling_opt  # noqa: F401

    import zotune.commands.console
    import zotune.commands.results
    import zotune.commands.runs
    import zotune.commands.studies
    import zotune.commands.training
    import zotune.inference
    import zotune.replay
    import zotune.run.plots
    import zotune.study.compare  # noqa: F401

    def write_picture(figure: object, path: Path, **how: object) -> None:
        path.write_bytes(b"a picture")

    matplotlib.figure.Figure.savefig = write_picture  # type: ignore[assignment,method-assign]
    torch.set_num_threads(1)
    gc.freeze()


def try_all(every: int, only: str | None = None) -> int:
    """Try every `every`-th pair of an operation and a fault; how many lost something."""
    warm()
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="zotune-faults-") as place:
        bench = Bench(Path(place).resolve())
        started, turn = time.perf_counter(), 0
        for scenario in bench.scenarios:
            if only not in (None, scenario.name):
                continue
            right, count = bench.undisturbed(scenario)
            for operation in range(1, count + 1):
                for fault in FAULTS:
                    turn += 1
                    if turn % every:
                        continue
                    wrong = bench.trial(scenario, right, operation, fault)
                    counts[f"{scenario.name} {'lost' if wrong else 'survived'}"] += 1
                    if wrong:
                        print(f"{scenario.name}, {fault} at operation {operation} of {count}: {wrong}\n", flush=True)
            tried = counts[f"{scenario.name} survived"] + counts[f"{scenario.name} lost"]
            survived = counts[f"{scenario.name} survived"]
            print(f"{scenario.name}: {count} operations, {tried} trials, {survived} survived", flush=True)
        lost = sum(number for name, number in counts.items() if name.endswith("lost"))
        print(f"tried {counts.total()}, survived {counts.total() - lost}, lost {lost}; "
              f"{time.perf_counter() - started:.0f} s")  # fmt: skip
    return lost


def build(folder: Path) -> Path:
    """The library to be preloaded, compiled into a folder; any warning is an error."""
    library = folder / "faults.so"
    options = ["-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC"]
    subprocess.run(["cc", *options, "-o", library, HERE / "faults.c", "-ldl"], check=True)
    return library


def preloaded(library: Path) -> dict[str, str]:
    """The environment of a process whose disk can fail."""
    paths = os.pathsep.join([str(HERE.parent / "src"), str(HERE.parent)])
    return {**os.environ, "LD_PRELOAD": str(library), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every operation with every fault")
    parser.add_argument("--every", type=int, default=7, help="else one in so many")
    parser.add_argument("--only", help="one scenario")
    arguments = parser.parse_args()
    if "faults.so" in os.environ.get("LD_PRELOAD", ""):
        sys.exit(1 if try_all(1 if arguments.all else arguments.every, arguments.only) else 0)
    with tempfile.TemporaryDirectory() as place:
        again = [sys.executable, *sys.argv]
        sys.exit(subprocess.run(again, env=preloaded(build(Path(place))), check=False).returncode)
