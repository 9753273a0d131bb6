"""Slopes on your model and data: eps, and what reusing prompt KV would do."""

from dataclasses import dataclass, fields
from pathlib import Path

from zotune.config.settings import Config, Dtype


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

        from zotune.assemble.parts import assemble, load_data
        from zotune.commands.console import print_analysis, set_up_logging
        from zotune.engine.torch.plain import PlainEngine
        from zotune.tools.analyze import analyze, save
        from zotune.zo.objectives import OBJECTIVES

        set_up_logging()
        parts = assemble(config, load_data(config), None, None)
        assert isinstance(parts.engine, PlainEngine)
        batch = parts.train[: self.batch_size]
        result = analyze(parts.engine, OBJECTIVES[parts.task.objective], batch, self.seed, self.directions)
        print_analysis(result)
        for path in save(result, Path(self.output_dir)):
            print(path)
