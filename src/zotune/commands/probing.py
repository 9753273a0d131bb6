"""Linear probing, a baseline that leaves the model as it is: `linear-probe`."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path

from zotune.config.fields import Dtype
from zotune.config.reading import make_config
from zotune.errors import InputError
from zotune.values import file_of


@dataclass(frozen=True)
class LinearProbe:
    """Fit a logistic regression on the hidden states at the end of each prompt, and score it; no model is trained.

    Needs pip install "zotune[probe]".
    """

    model: str = "demo"
    """The model: hub id or local folder, as in train."""

    task: str | None = None
    """A built-in task; `zotune tasks` lists them. Default: as in train."""

    train_data: str | None = None
    """Data to fit on, as for training; default: the task's own."""

    eval_data: str | None = None
    """Data to score on. Default: the task's own, or a tenth of the training data that is held out."""

    max_train_samples: int | None = None
    """Fit on at most this many records, drawn at random by --data-seed. Default: all."""

    max_eval_samples: int | None = 1000
    """Score on at most this many records, drawn at random by --data-seed."""

    data_seed: int = 0
    """Seed of what is drawn from the data."""

    num_per_class: int | None = None
    """Fit on this many records of each label, as in train; without --eval-data score on as many others."""

    num_demonstrations: int = 0
    """Put this many training examples with their answers before every prompt, as in train."""

    template: str | None = None
    """The prompt, with the data's fields in braces, e.g. "{text}". Default: the task's."""

    invocation: str | None = None
    """A fixed text that ends every prompt, e.g. " It was". Default: the task's."""

    labels: tuple[str, ...] = ()
    """The label words, in the order of the label ids, e.g. terrible great; or name=word for each, where the data gives
    labels as names. Default: the task's."""

    fields: tuple[str, ...] = ()
    """What the data calls its fields, where it does not use the task's names: e.g. text=body label=stars."""

    max_length: int | None = None
    """The most tokens that an example may have; longer prompts lose tokens at their beginning. Default: the model's
    context, at most 2048."""

    dtype: Dtype | None = None
    """The precision of the model's weights. Default: as in train."""

    device: str = "auto"
    """Where the model runs: cpu, cuda, cuda:1, ...; `auto` takes CUDA where there is one."""

    num_threads: int | None = None
    """The number of CPU threads. Default: as in train."""

    trust_remote_code: bool = False
    """Run Python code that comes with a model from the hub. Only for models whose code you have read."""

    output_file: str | None = None
    """Also write the scores and the predictions to this JSON file."""

    def run(self) -> None:
        settings = {item.name: getattr(self, item.name) for item in fields(LinearProbe) if item.name != "output_file"}
        config = make_config(settings)
        if self.output_file is not None:
            file_of(self.output_file, "--output-file")

        from zotune.commands.console import set_up_logging
        from zotune.commands.results import print_probe
        from zotune.run.metrics import write_json
        from zotune.tools.linear_probe import linear_probe

        set_up_logging()
        found = asdict(linear_probe(config))
        print_probe(found)
        if self.output_file:
            try:
                write_json(Path(self.output_file), found)
            except OSError as error:
                raise InputError(f"--output-file: cannot write {self.output_file}: {error.strerror}") from error
