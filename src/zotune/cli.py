"""The command `zotune`: flags and TOML -> Config -> one of the commands.

Exit code 2: what was asked for cannot be done; 1: training had to stop.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_type_hints

import tyro

import zotune
from zotune.adapter import CONFIG_FILE
from zotune.config import Config, Dtype, EngineName, read_toml
from zotune.engine.sglang.options import parse_flags
from zotune.errors import InputError, TrainingError


@dataclass(frozen=True)
class Train(Config):
    """Fine-tune a model. A TOML file with the same settings may stand first: zotune train run.toml --seed 3"""

    def __post_init__(self) -> None:
        """Checked in `run`: an error raised here would reach the user in the parser's words."""

    def run(self) -> None:
        settings = {field.name: getattr(self, field.name) for field in fields(Config)}
        Config(**settings)  # before PyTorch is loaded, which takes seconds

        from zotune.console import ConsoleProgress, set_up_logging
        from zotune.finetune import mezo_finetune

        set_up_logging()
        progress = ConsoleProgress()
        try:
            result = mezo_finetune(**settings, callbacks=[progress])
        finally:
            progress.close()
        _finish(result.summary, result.run_folder)


@dataclass(frozen=True)
class Inference:
    """What evaluate and predict share. Beside a run's config.toml, the adapter's run gives the defaults."""

    model: str | None = None
    """Hub id or local folder of the base model; default: that of the adapter's run, or demo."""

    engine: EngineName | None = None
    """What computes the forward passes, as for training; default: that of the adapter's run, or torch."""

    sglang: dict[str, Any] = field(default_factory=dict)
    """Options of SGLang's own, as for training: --sglang.NAME VALUE."""

    adapter: str | None = None
    """An adapter folder, such as RUN/adapter; default: none, the bare model."""

    task: str | None = None
    """A built-in task (see `zotune tasks`)."""

    template: str | None = None
    """The prompt, with fields in braces."""

    invocation: str | None = None
    """Fixed text that ends every prompt."""

    labels: tuple[str, ...] | None = None
    """Label words in the order of the label ids; name=word where the data's labels are strings."""

    fields: tuple[str, ...] | None = None
    """Names of the data's fields where they differ from the task's: e.g. text=body label=stars."""

    max_length: int | None = None
    """Most tokens of an example; longer prompts lose tokens on the left."""

    dtype: Dtype | None = None
    """Of the model's weights. Default: float32 on CPU, bfloat16 on CUDA."""

    load_in_4bit: bool = False
    """Quantise the base model to nf4, as for training; default: as in the adapter's run."""

    load_in_8bit: bool = False
    """Quantise the base model to int8, as for training; default: as in the adapter's run."""

    device: str | None = None
    """cpu, cuda, cuda:1, ...; default: CUDA where there is one."""

    num_threads: int | None = None
    """CPU threads; default: PyTorch's choice."""

    trust_remote_code: bool = False
    """Run code that comes with a model from the hub."""

    def settings(self) -> dict[str, Any]:
        given = {field.name: getattr(self, field.name) for field in fields(Inference) if field.name != "adapter"}
        switches = ("load_in_4bit", "load_in_8bit", "trust_remote_code")
        return given | {name: given[name] or None for name in switches}  # a flag that is not there says nothing


@dataclass(frozen=True)
class Evaluate(Inference):
    """Accuracy and loss of an adapter, or of the bare model, on labelled data."""

    eval_data: str | None = None
    """Labelled data, as for training; default: that of the adapter's run, or the task's own."""

    max_eval_samples: int | None = None
    """Evaluate on at most this many records; default: all."""

    output_file: str | None = None
    """Write the metrics and predictions to this JSON file too."""

    def run(self) -> None:
        from zotune.console import print_evaluation, set_up_logging
        from zotune.inference import evaluate
        from zotune.metrics import write_json

        if self.output_file and not Path(self.output_file).absolute().parent.is_dir():
            raise InputError(f"--output-file: there is no folder {Path(self.output_file).parent}")
        set_up_logging()
        evaluation = asdict(
            evaluate(
                self.eval_data,
                adapter=self.adapter,
                max_eval_samples=self.max_eval_samples,
                **self.settings(),
            )
        )
        print_evaluation(evaluation)
        if self.output_file:
            try:
                write_json(Path(self.output_file), evaluation)
            except OSError as error:
                raise InputError(f"--output-file: cannot write {self.output_file}: {error.strerror}") from error


@dataclass(frozen=True)
class Predict(Inference):
    """A label or completion for each line of a file or of standard input, one a line on standard output."""

    data: str = "-"
    """A data file, or - for standard input: lines of text, or of JSON objects with the task's fields."""

    max_new_tokens: int = 64
    """Most tokens of a completion."""

    temperature: float = 0.0
    """0 completes greedily, above it samples."""

    def run(self) -> None:
        import json

        from zotune.console import set_up_logging
        from zotune.inference import predict

        set_up_logging()
        data: Any = self.data
        if data == "-":
            data = []
            for number, line in enumerate(sys.stdin.read().split("\n"), start=1):
                try:
                    data += [json.loads(line) if line.lstrip().startswith("{") else line] if line.strip() else []
                except json.JSONDecodeError as error:
                    raise InputError(
                        f"--data: line {number} of standard input starts with a brace but is not JSON: {error.msg} "
                        f"at column {error.colno}"
                    ) from error
        for text in predict(
            data,
            adapter=self.adapter,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            **self.settings(),
        ):
            print(text.replace("\r", "\\r").replace("\n", "\\n"))


@dataclass(frozen=True)
class Resume:
    """Go on with a run that was stopped, from the last step of its journal."""

    run_folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """The run folder."""

    def run(self) -> None:
        from zotune.console import ConsoleProgress, set_up_logging
        from zotune.finetune import resume

        set_up_logging()
        progress = ConsoleProgress()
        try:
            result = resume(self.run_folder, callbacks=[progress])
        finally:
            progress.close()
        _finish(result.summary, result.run_folder)


@dataclass(frozen=True)
class Replay:
    """Rebuild the adapter at any step of a run from its journal; no model is loaded.

    After full-parameter training it is the model that is rebuilt, from the base model, which must be at hand.
    """

    run_folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """The run folder."""

    output_dir: str
    """Where to write the adapter (or model); must not exist."""

    step: int | None = None
    """The step; default: the last."""

    def run(self) -> None:
        from zotune.finetune import replay_run

        step = replay_run(self.run_folder, self.output_dir, self.step)
        kind = "adapter" if (Path(self.output_dir) / CONFIG_FILE).exists() else "model"
        print(f"{kind} after step {step}: {self.output_dir}")


@dataclass(frozen=True)
class Plot:
    """Plot loss, evaluations, step time and reuse of one run, or of several over each other."""

    run_folders: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")]
    """The run folders."""

    output_dir: str | None = None
    """Where to write the PNG and SVG; default: plots/ in the first run folder."""

    def run(self) -> None:
        from zotune.plots import plot_runs

        if not self.run_folders:
            raise InputError("name at least one run folder: zotune plot RUN [RUN ...]")
        for path in plot_runs(
            [Path(run) for run in self.run_folders], Path(self.output_dir) if self.output_dir else None
        ):
            print(path)


@dataclass(frozen=True)
class Tasks:
    """List the built-in tasks with their templates, labels and data sets."""

    def run(self) -> None:
        from zotune.console import print_tasks

        print_tasks()


@dataclass(frozen=True)
class Analyze:
    """Measure, on your model and data, what reusing prompt KV between probes of an ordinary LoRA would do to the slope.

    Also recommends an eps, from the exact slopes.
    """

    model: str = "demo"
    """Hub id or local folder of a causal LM of transformers."""

    task: str | None = None
    """A built-in task (see `zotune tasks`)."""

    train_data: str | None = None
    """Data to measure on, as for training; default: the task's own."""

    template: str | None = None
    """The prompt, with fields in braces."""

    invocation: str | None = None
    """Fixed text that ends every prompt."""

    labels: tuple[str, ...] = ()
    """Label words in the order of the label ids; name=word where the data's labels are strings."""

    fields: tuple[str, ...] = ()
    """Names of the data's fields where they differ from the task's: e.g. text=body label=stars."""

    target_modules: tuple[str, ...] = ("q_proj", "v_proj")
    """Linear modules to adapt, as in PEFT; or all-linear."""

    max_length: int | None = None
    """Most tokens of an example; longer prompts lose tokens on the left."""

    batch_size: int = 16
    """Examples to measure on."""

    directions: int = 8
    """Directions to measure along."""

    seed: int = 0
    """Seed of the adapter's start and the directions."""

    dtype: Dtype | None = None
    """Of the model's weights. Default: float32 on CPU, bfloat16 on CUDA."""

    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto is CUDA where there is one."""

    num_threads: int | None = None
    """CPU threads; default: PyTorch's choice."""

    output_dir: str = "analysis"
    """Where to write analysis.json and the plot."""

    def run(self) -> None:
        settings = {field.name: getattr(self, field.name) for field in fields(Analyze)}
        config = Config(**settings | {"engine": "plain", "scope": "everywhere", "max_eval_samples": 1})

        from zotune.analyze import analyze, save
        from zotune.console import print_analysis, set_up_logging
        from zotune.engine.plain_engine import PlainEngine
        from zotune.objectives import OBJECTIVES
        from zotune.parts import assemble, load_data

        set_up_logging()
        parts = assemble(config, load_data(config), None, None)
        assert isinstance(parts.engine, PlainEngine)
        batch = parts.train[: self.batch_size]
        result = analyze(parts.engine, OBJECTIVES[parts.task.objective], batch, self.seed, self.directions)
        print_analysis(result)
        for path in save(result, Path(self.output_dir)):
            print(path)


@dataclass(frozen=True)
class Profile(Train):
    """Show where the time of a training step goes: a table, and a Chrome trace in the run folder.

    Takes the settings of train; --num-steps is the number of steps to profile.
    """

    num_steps: int = 10
    """Steps to profile, after two that are not counted."""

    def run(self) -> None:
        settings = {field.name: getattr(self, field.name) for field in fields(Config)}
        Config(**settings)

        from zotune.console import print_profile, set_up_logging
        from zotune.finetune import make_trainer
        from zotune.profile import profile_steps

        set_up_logging()
        with make_trainer(**settings) as trainer:
            trace = trainer.folder.path / "trace.json"
            print_profile(profile_steps(trainer, self.num_steps, trace), self.num_steps)
            print(f"trace, for a browser's tracing page: {trace}")


@dataclass(frozen=True)
class Compare:
    """Train several methods on tasks and seeds at equal budgets, as a TOML file says; goes on where it stopped."""

    study: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="STUDY.toml")]
    """The study; docs/comparing.md shows one."""

    output_dir: str | None = None
    """Where the run folders go; default: the study's output_dir, or output/NAME."""

    def run(self) -> None:
        study = _study(self.study, self.output_dir)

        from zotune.compare import HEADING, run_comparison, table
        from zotune.console import set_up_logging
        from zotune.plots import plot_comparison
        from zotune.study import markdown

        set_up_logging()
        outcomes = []
        for outcome in run_comparison(study):
            outcomes.append(outcome)
            text = markdown(HEADING, table(outcomes))
            (study.output / "table.md").write_text(text, encoding="utf-8")
        print(text)
        print(study.output / "table.md", *plot_comparison(outcomes, study.output), sep="\n")


@dataclass(frozen=True)
class Sweep:
    """Search the grid of a TOML file by successive halving, within its budget; goes on where it stopped."""

    study: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="STUDY.toml")]
    """The study, with a [grid]; docs/comparing.md shows one."""

    output_dir: str | None = None
    """Where the run folders go; default: the study's output_dir, or output/NAME."""

    keep: int = 3
    """One in so many goes on to the next round."""

    def run(self) -> None:
        if self.keep < 2:
            raise InputError(f"--keep must be 2 or more, got {self.keep}")
        study = _study(self.study, self.output_dir)

        from zotune.console import set_up_logging
        from zotune.study import markdown
        from zotune.sweep import HEADING, run_sweep

        set_up_logging()
        print(markdown(HEADING, run_sweep(study, self.keep)))


METAVARS = {str: "STR", int: "INT", float: "FLOAT", tuple[str, ...]: "[STR [STR ...]]"}


def _with_plain_help(command: Any) -> Any:
    """The command, whose help does not speak of None: where that is a default, the docstring says what it means."""
    hints = get_type_hints(command)
    for option in fields(command):
        if option.name == "sglang":  # taken out of the command line before it is parsed
            command.__annotations__["sglang"] = Annotated[dict[str, Any], tyro.conf.Suppress]
        elif option.default is None:
            kind = next(kind for kind in get_args(hints[option.name]) if kind is not type(None))
            metavar = METAVARS.get(kind) or "{" + ",".join(get_args(kind)) + "}"
            argument = tyro.conf.arg(metavar=metavar, help_behavior_hint="")
            command.__annotations__[option.name] = Annotated[hints[option.name], argument]
    return command


COMMANDS = {
    "train": Train, "evaluate": Evaluate, "predict": Predict, "resume": Resume, "replay": Replay, "plot": Plot,
    "compare": Compare, "sweep": Sweep, "analyze": Analyze, "profile": Profile, "tasks": Tasks,
}  # fmt: skip
COMMANDS = {name: _with_plain_help(command) for name, command in COMMANDS.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console command."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        parse(arguments).run()
    except InputError as error:
        _fail(error, code=2)
    except TrainingError as error:
        _fail(error, code=1)
    except KeyboardInterrupt:
        _fail("interrupted; what was journalled is kept: zotune resume RUN goes on", code=130)
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse(arguments: list[str]) -> Any:
    """The command of a command line, with its options."""
    base = Train()
    if arguments[:1] == ["train"] and len(arguments) > 1 and not arguments[1].startswith("-"):
        config = read_toml(Path(arguments.pop(1)))
        base = Train(**{field.name: getattr(config, field.name) for field in fields(Config)})
    options, arguments = parse_flags(arguments)
    commands: Any = Union[tuple(_subcommand(name, base if name == "train" else None) for name in COMMANDS)]  # noqa: UP007
    style = (tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff)
    command = tyro.cli(commands, args=arguments, prog="zotune", description=zotune.__doc__, config=style)
    if not options:
        return command
    if not hasattr(command, "sglang"):
        raise InputError(f"--sglang.{next(iter(options))}: {type(command).__name__.lower()} takes no options of SGLang")
    return replace(command, sglang={**command.sglang, **options})


def _subcommand(name: str, default: Any) -> Any:
    command = COMMANDS[name]
    options = {} if default is None else {"default": default}
    return Annotated[command, tyro.conf.subcommand(name, description=command.__doc__, **options)]


def _study(path: str, output_dir: str | None) -> Any:
    from zotune.study import read_study

    return read_study(Path(path), output_dir)


def _finish(summary: dict[str, Any], folder: Path) -> None:
    from zotune.console import print_summary
    from zotune.plots import plot_runs

    plot_runs([folder])
    print_summary(summary, folder)


def _fail(message: object, code: int) -> None:
    print(f"zotune: {message}", file=sys.stderr)
    raise SystemExit(code)
