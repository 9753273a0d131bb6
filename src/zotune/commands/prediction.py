"""Use an adapter, or the bare model: evaluate and predict."""

import sys
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from zotune.config.fields import Dtype, EngineName
from zotune.errors import InputError


@dataclass(frozen=True)
class Inference:
    """What evaluate and predict share. Beside a run's config.toml, the adapter's run gives the defaults."""

    model: str | None = None
    """Hub id or local folder of the base model; default: that of the adapter's run, or demo."""

    engine: EngineName | None = None
    """What computes the forward passes, as for training; default: that of the adapter's run, or torch."""

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

    quantization: Literal["none", "nf4", "int8"] | None = None
    """Quantise the base model, as in train; `none` takes it as it is. Default: as in the adapter's run."""

    device: str | None = None
    """cpu, cuda, cuda:1, ...; default: CUDA where there is one."""

    num_threads: int | None = None
    """CPU threads; default: PyTorch's choice."""

    trust_remote_code: bool = False
    """Run code that comes with a model from the hub."""

    tables: dict[str, Any] = field(default_factory=dict)
    """Options that an engine alone has, as for training: --sglang.NAME VALUE."""

    def settings(self) -> dict[str, Any]:
        given = {item.name: getattr(self, item.name) for item in fields(Inference) if item.name != "adapter"}
        return given | {"trust_remote_code": self.trust_remote_code or None}  # a flag that is not there says nothing


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
        from zotune.commands.console import set_up_logging
        from zotune.commands.results import print_evaluation
        from zotune.inference import evaluate
        from zotune.run.metrics import write_json

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

        from zotune.commands.console import set_up_logging
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
