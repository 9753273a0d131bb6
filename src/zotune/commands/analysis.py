"""Look into a step on your own model and data: its slopes, and where its time goes."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from zotune.commands.training import Train
from zotune.config.fields import Dtype, Scope
from zotune.config.reading import make_config
from zotune.errors import InputError
from zotune.values import folder_of


@dataclass(frozen=True)
class Analyze:
    """Measure on your model and data which epsilon to use, and how wrong slopes become when an ordinary LoRA's probes
    share the keys and values of their prompts; or, with --lens, how near the lens comes to the gradient."""

    model: str = "demo"
    """Hub id or local folder of a causal LM of transformers, or of a masked one, in which probes share nothing."""

    task: str | None = None
    """A built-in task; `zotune tasks` lists them. Default: worked out from the fields of the data; `demo` where no data
    is given."""

    train_data: str | None = None
    """Data to measure on, as for training; default: the task's own."""

    template: str | None = None
    """The prompt, with the data's fields in braces, e.g. "{text}". Default: the task's."""

    invocation: str | None = None
    """A fixed text that ends every prompt, e.g. " It was". In scope activated the adapter acts from here on. Default:
    the task's."""

    labels: tuple[str, ...] = ()
    """The label words, in the order of the label ids, e.g. terrible great; or name=word for each, where the data gives
    labels as names. Default: the task's."""

    choice_fields: tuple[str, ...] = ()
    """The data's fields that hold the options of each record, as in train. Default: the task's."""

    fields: tuple[str, ...] = ()
    """What the data calls its fields, where it does not use the task's names: e.g. text=body label=stars."""

    lens: bool = False
    """Measure instead the cosine of the gradient by the lens with that by backpropagation, block by block."""

    scope: Scope | None = None
    """With --lens: where the adapter acts, as in train. Default: activated where the task has an invocation, else
    everywhere."""

    target_modules: tuple[str, ...] | None = None
    """Linear modules to adapt, as in PEFT; or all-linear. Default: q_proj v_proj; with --lens those that write into the
    residual stream."""

    max_length: int | None = None
    """The most tokens that an example may have; longer prompts lose tokens at their beginning. Default: the model's
    context, at most 2048."""

    batch_size: int = 16
    """Examples to measure on."""

    directions: int = 8
    """Directions to measure along."""

    seed: int = 0
    """Seed of the adapter's start and the directions."""

    dtype: Dtype | None = None
    """The precision of the model's weights; the adapter is always float32. Default: float32 on a CPU, bfloat16 on
    CUDA."""

    device: str = "auto"
    """Where the model runs: cpu, cuda, cuda:1, ...; `auto` takes CUDA where there is one."""

    num_threads: int | None = None
    """The number of CPU threads. Default: as PyTorch chooses."""

    output_dir: str = "analysis"
    """Where to write analysis.json and the plot."""

    def run(self) -> None:
        if self.scope is not None and not self.lens:
            raise InputError("--scope has no effect without --lens; leave it out")
        settings = {field.name: getattr(self, field.name) for field in fields(Analyze) if field.name != "lens"}
        folder = folder_of(self.output_dir, "--output-dir")
        method = {"estimator": "lens", "directions": None} if self.lens else {"engine": "plain", "scope": "everywhere"}
        config = make_config({**settings, "estimator": "one_sided", **method, "max_eval_samples": 1})

        from zotune.assemble.bounds import check_bounds
        from zotune.assemble.data import load_data
        from zotune.assemble.model import find_model
        from zotune.assemble.parts import assemble
        from zotune.commands.console import set_up_logging
        from zotune.commands.results import print_analysis, print_cosines
        from zotune.engine.torch.plain import PlainEngine
        from zotune.run.watch import remedy
        from zotune.tools import lens_cosines
        from zotune.tools.analyze import analyze, save
        from zotune.zo.objectives import ScoredObjective

        set_up_logging()
        data = load_data(config)
        model = find_model(config, task=data.task)
        check_bounds(config, data)
        parts = assemble(config, data, model)
        engine, objective = parts.engine, parts.run.objective
        if self.lens:
            if (why := engine.why_not("gradients")) is not None:
                raise InputError(f"--lens: there is nothing to compare with ({why})")
            cosines = lens_cosines.lens_cosines(engine, objective, parts.train[: self.batch_size], self.seed)
            print_cosines(cosines)
            print(*_written(lambda: lens_cosines.save(cosines, folder), folder), sep="\n")
            return
        assert isinstance(engine, PlainEngine)
        assert isinstance(objective, ScoredObjective)
        try:
            result = analyze(engine, objective, parts.train[: self.batch_size], self.seed, self.directions)
        except FloatingPointError as error:
            raise InputError(f"{error}: {remedy(parts.run.config.dtype)}") from error
        print_analysis(result)
        print(*_written(lambda: save(result, folder), folder), sep="\n")


def _written(save: Callable[[], list[Path]], folder: Path) -> list[Path]:
    try:
        return save()
    except OSError as error:
        raise InputError(f"--output-dir: cannot write {folder}: {error.strerror}") from error


@dataclass(frozen=True)
class Profile(Train):
    """Show where the time of a training step goes: a table, and a trace for a browser in the run folder.

    Takes the settings of train; --num-steps is the number of steps to profile.
    """

    num_steps: int = 10
    """The number of steps to profile, after two that are not counted."""

    def run(self) -> None:
        config = self.config

        from zotune.commands.console import set_up_logging
        from zotune.commands.results import print_profile
        from zotune.finetune import start_run
        from zotune.tools.profile import profile_steps

        set_up_logging()
        with start_run(config) as trainer:
            trace = trainer.folder.path / "trace.json"
            print_profile(profile_steps(trainer, self.num_steps, trace), self.num_steps)
            print(f"trace, for a browser's tracing page: {trace}")
