"""Use an adapter, or the bare model: evaluate and predict."""

import sys
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from zotune.config.fields import Dtype, EngineName
from zotune.errors import InputError
from zotune.values import file_of


@dataclass(frozen=True)
class Inference:
    """What evaluate and predict share. Beside a run's config.toml, the adapter's run gives the defaults."""

    model: str | None = None
    """The base model: hub id or local folder. Default: that of the adapter's run, else the one that the adapter names;
    demo without an adapter."""

    engine: EngineName | None = None
    """What computes the forward passes, as in train. Default: that of the adapter's run, else torch."""

    adapter: str | None = None
    """An adapter folder, such as RUN/adapter or RUN/best. Default: none; the bare model answers."""

    task: str | None = None
    """A built-in task; `zotune tasks` lists them. Default: that of the adapter's run, else worked out from the fields
    of labelled data, as in train."""

    template: str | None = None
    """The prompt, with the data's fields in braces, e.g. "{text}". Default: the task's."""

    invocation: str | None = None
    """A fixed text that ends every prompt, e.g. " It was". In scope activated the adapter acts from here on. Default:
    the task's."""

    labels: tuple[str, ...] | None = None
    """The label words, in the order of the label ids, e.g. terrible great; or name=word for each, where the data gives
    labels as names. Default: the task's."""

    choice_fields: tuple[str, ...] | None = None
    """The data's fields that hold the options of each record, as in train. Default: the task's."""

    chat_template: str | None = None
    """A file with the chat template, as in train. Default: that of the adapter's run, else the tokenizer's own."""

    label_separator: str | None = None
    """What stands between the invocation and a label word, as in train. Default: that of the adapter's run, else a
    space where one belongs."""

    num_demonstrations: int | None = None
    """Put this many examples of --train-data with their answers before every prompt (in-context learning), drawn by
    --data-seed 0 or that of the adapter's run. Default: those that the adapter was trained with, else none."""

    train_data: str | None = None
    """Where demonstrations are drawn from. Default: the adapter's run's training data, else the task's own."""

    fields: tuple[str, ...] | None = None
    """What the data calls its fields, where it does not use the task's names: e.g. text=body label=stars."""

    max_length: int | None = None
    """The most tokens that an example may have; longer prompts lose tokens at their beginning. Default: the model's
    context, at most 2048."""

    dtype: Dtype | None = None
    """The precision of the model's weights; the adapter is always float32. Default: float32 on a CPU, bfloat16 on
    CUDA."""

    quantization: Literal["none", "nf4", "int8"] | None = None
    """Quantise the base model, as in train; `none` takes it as it is. Default: as in the adapter's run."""

    device: str | None = None
    """Where the model runs: cpu, cuda, cuda:1, ...; `auto` takes CUDA where there is one."""

    num_threads: int | None = None
    """The number of CPU threads. Default: as PyTorch chooses."""

    trust_remote_code: bool = False
    """Run Python code that comes with a model from the hub. Only for models whose code you have read."""

    tables: dict[str, Any] = field(default_factory=dict)
    """Options that an engine alone has, as for training: --sglang.NAME VALUE."""

    def settings(self) -> dict[str, Any]:
        given = {item.name: getattr(self, item.name) for item in fields(Inference) if item.name != "adapter"}
        return given | {"trust_remote_code": self.trust_remote_code or None}  # a flag that is not there says nothing


@dataclass(frozen=True)
class Evaluate(Inference):
    """Accuracy and loss of an adapter, or of the bare model, on labelled data."""

    eval_data: str | None = None
    """Labelled data, as in train. Default: that of the adapter's run, else the task's own."""

    max_eval_samples: int | None = None
    """Evaluate on at most this many records. Default: all."""

    metrics: tuple[str, ...] | None = None
    """Measure these beside the loss, as in train. Default: those of the adapter's run."""

    reward: tuple[str, ...] | None = None
    """Judge what the model writes by these rewards, as in train. Default: those of the adapter's run; where they are
    code, they must be named again."""

    reward_weights: tuple[float, ...] | None = None
    """The weight of each --reward. Default: those of the adapter's run, else all 1."""

    max_new_tokens: int | None = None
    """The most tokens that the model writes behind a prompt, with --reward or --metrics of texts. Default: that of the
    adapter's run, else 64."""

    stop_strings: tuple[str, ...] | None = None
    """End a text before the first of these, with --reward or --metrics of texts. Default: those of the adapter's
    run."""

    output_file: str | None = None
    """Also write the metrics and the predictions to this JSON file."""

    def run(self) -> None:
        from zotune.commands.console import set_up_logging
        from zotune.commands.results import print_evaluation
        from zotune.inference import evaluate
        from zotune.run.metrics import write_json

        if self.output_file is not None:
            file_of(self.output_file, "--output-file")
        set_up_logging()
        evaluation = asdict(
            evaluate(
                self.eval_data,
                adapter=self.adapter,
                max_eval_samples=self.max_eval_samples,
                reward_funcs=self.reward,
                **self.settings(),
                **{
                    name: getattr(self, name)
                    for name in ("metrics", "reward_weights", "max_new_tokens", "stop_strings")
                },
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
    """A file, or - for standard input. Each line is a text, or a JSON object with the task's fields."""

    max_new_tokens: int = 64
    """The most tokens of a completion."""

    temperature: float = 0.0
    """0 always takes the likeliest token; above 0, tokens are sampled."""

    def run(self) -> None:
        from zotune.commands.console import set_up_logging
        from zotune.inference import predict

        set_up_logging()
        data = sys.stdin.buffer if self.data == "-" else self.data
        for text in predict(
            data,
            adapter=self.adapter,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            **self.settings(),
        ):
            print(text.replace("\r", "\\r").replace("\n", "\\n"))
