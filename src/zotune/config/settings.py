"""Every setting of a run and its default. The docstring of a field is its `--help`.

Flags, TOML keys and keyword arguments are these same words. `None` means: chosen when the run starts, from the task,
the data or the model; config.toml in the run folder holds what was chosen.
"""

import difflib
import tomllib
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

import tomli_w

from zotune.adapter.forms import FORMS
from zotune.config.checks import check
from zotune.errors import InputError
from zotune.zo.estimators import ESTIMATORS, SHAPINGS
from zotune.zo.noise import KINDS
from zotune.zo.optimizers import OPTIMIZERS

Scope = Literal["activated", "everywhere"]
Tuning = Literal["lora", "full"]
EngineName = Literal["torch", "plain", "sglang"]
Dtype = Literal["float32", "bfloat16", "float16"]
SchedulerType = Literal["constant", "linear", "cosine", "constant_with_warmup"]
# The rows of the tables are the choices.
if TYPE_CHECKING:
    EstimatorName: TypeAlias = str
    OptimizerName: TypeAlias = str
    NoiseKind: TypeAlias = str
    Shaping: TypeAlias = str
    PeftType: TypeAlias = str
else:
    EstimatorName = Literal[tuple(ESTIMATORS)]
    OptimizerName = Literal[tuple(OPTIMIZERS)]
    NoiseKind = Literal[tuple(KINDS)]
    Shaping = Literal[tuple(SHAPINGS)]
    PeftType = Literal[(*FORMS, "prompt_tuning")]


@dataclass(frozen=True)
class Config:
    """Fine-tune a causal language model with forward passes only (zeroth order, with LoRA)."""

    model: str = "demo"
    """Hub id or local folder of a causal LM of transformers; `demo` is the small OPT that comes with zotune."""

    task: str | None = None
    """A built-in task (see `zotune tasks`); default: from the data's fields, or `demo` where no data is given."""

    train_data: str | None = None
    """Training data: .jsonl, .json, .csv (also .gz), .parquet, or a data set (hub id or folder).
    Default: the task's own."""

    eval_data: str | None = None
    """Evaluation data, as for --train-data; default: the task's own, or a tenth of the training data, held out."""

    output_dir: str | None = None
    """The run folder, which must not exist; default: output/TASK-MODEL-DATE-TIME."""

    overwrite: bool = False
    """Replace the run in --output-dir."""

    engine: EngineName = "torch"
    """What computes the forward passes: `torch` is transformers in this process, with exact reuse; `plain` is the same
    without any: every token of every probe, one probe at a time; `sglang` is SGLang, with any option of it as
    --sglang.NAME VALUE, e.g. --sglang.tp-size 2."""

    sglang: dict[str, Any] = field(default_factory=dict)
    """Options of SGLang's own, by the names of its ServerArgs; on the command line --sglang.NAME VALUE."""

    scope: Scope | None = None
    """Where the adapter acts: `activated` from the invocation on, or `everywhere`.
    Default: activated where the task has an invocation."""

    num_steps: int = 600
    """Training steps."""

    batch_size: int = 16
    """Examples a step."""

    epsilon: float = 1e-2
    """Distance of the probes from theta along a direction."""

    learning_rate: float | None = None
    """Default: by the optimizer, lower for models above 100 million parameters (see docs/decisions.md); 1e-6 with
    --tuning full."""

    lr_scheduler_type: SchedulerType = "linear"
    """How the learning rate goes over the steps, as in transformers."""

    warmup_steps: int = 0
    """Steps over which the learning rate rises from 0."""

    estimator: EstimatorName | None = None
    """How slopes are estimated: `spsa` is the two-sided difference of MeZO, `one_sided` shares a base point, `fzoo`
    and `es` (evolution strategy) free the step of the loss's scale, `svrg` subtracts a control variate, `hizoo`
    measures curvature for the optimizer of that name, `adaptive` is spsa with an eps that follows rounding noise and
    curvature, `jvp` differentiates in forward mode, exactly and without eps. Default: one_sided; spsa with --tuning
    full."""

    optimizer: OptimizerName | None = None
    """How slopes change theta: `sgd`, `sign`, `adam`, `adamw`, `muon` (orthogonalised matrices) or `hizoo` (a
    diagonal of curvature). Weight decay is in the gradient with sgd and adam, decoupled with the others. Default: adam;
    sgd with --tuning full."""

    directions: int | None = None
    """Directions a step, each with a probe or two; their slopes are averaged. Default: 16 in scope activated, 4
    everywhere, 1 with --tuning full."""

    noise: NoiseKind | None = None
    """What directions are drawn from: `gaussian`, `rademacher` (-1 or 1), `sphere` (of each tensor) or `low_rank`
    (LOZO). Default: rademacher with fzoo, else gaussian."""

    noise_rank: int | None = None
    """Rank of low_rank noise; default: 2."""

    noise_steps: int | None = None
    """Steps that the subspace of low_rank noise, or a block of --noise-blocks, is kept; default: 50."""

    noise_blocks: int | None = None
    """Move one of this many blocks of layers at a time, one after the other; default: all layers in every step."""

    sparsity: float | None = None
    """Keep this share of each tensor, its entries of largest magnitude, unmoved (Sparse-MeZO: 0.75); default: none."""

    es_shaping: Shaping | None = None
    """What es makes of the losses of a step: `z-score` or `rank`; default: z-score."""

    svrg_steps: int | None = None
    """Steps from one anchor of svrg to the next; default: 10."""

    svrg_batches: int | None = None
    """Batches over which svrg measures an anchor; default: 8."""

    epsilon_steps: int | None = None
    """Steps from one measurement of adaptive to the next; default: 50. --epsilon is where it starts."""

    weight_decay: float = 0.0
    """Weight decay of the optimizer."""

    clip: float | None = None
    """Cut slopes to this multiple of the running median of |slope|; default: never."""

    momentum: float | None = None
    """Momentum of sgd (default 0), sign (0.9) and muon (0.95)."""

    adam_beta1: float | None = None
    """Decay of the mean in adam and adamw; default: 0.9."""

    adam_beta2: float | None = None
    """Decay of the mean square in adam and adamw; default: 0.999."""

    adam_epsilon: float | None = None
    """What adam and adamw add to the root of the mean square; default: 1e-8."""

    hizoo_smoothing: float | None = None
    """Share of a step's curvature in the diagonal of the optimizer hizoo; default: 1e-3."""

    seed: int = 0
    """Seed of the adapter's start, the order of examples and the directions."""

    data_seed: int = 0
    """Seed of the held-out split and of samples of the data; apart from --seed, so that runs share their data."""

    tuning: Tuning = "lora"
    """What is trained: `lora`, an adapter; or `full`, the model's own parameters in their dtype, at the memory of
    inference, exported as a model folder. MeZO's for OPT: --tuning full --epsilon 1e-3 --learning-rate 1e-6
    or 1e-7, --lr-scheduler-type constant."""

    peft_type: PeftType | None = None
    """`lora`, the default in scope everywhere; `lora_fa`, with A frozen, the default in scope activated; `vera`, A and
    B frozen, shared by all modules and scaled by trained vectors (use a large --lora-rank, such as 256), all exported
    as ordinary LoRA adapters; or `prompt_tuning`, trained vectors in front of every prompt, no layer changed."""

    init_lora_weights: Literal["kaiming", "eva"] | None = None
    """Where A starts with lora and lora_fa (B is 0): `eva`, the default in scope activated, at the principal components
    of each layer's inputs over 256 training examples; `kaiming`, in scope everywhere, at random (PEFT's True)."""

    num_virtual_tokens: int | None = None
    """Trained vectors in front of every prompt with prompt_tuning; they count towards --max-length. Default: 20."""

    lora_rank: int = 8
    """Rank of the LoRA matrices."""

    lora_alpha: float = 16.0
    """LoRA scale: the product is multiplied by alpha / rank."""

    target_modules: tuple[str, ...] = ("q_proj", "v_proj")
    """Linear modules to adapt, as in PEFT; or all-linear."""

    max_length: int | None = None
    """Most tokens of an example; longer prompts lose tokens on the left. Default: the model's context, at most 2048."""

    eval_steps: int = 100
    """Steps between evaluations."""

    early_stopping_patience: int | None = None
    """Stop after this many evaluations without a lower loss; default: never."""

    max_train_samples: int | None = None
    """Use at most this many training records, drawn by --data-seed; default: all."""

    max_eval_samples: int | None = 1000
    """Evaluate on at most this many records, drawn by --data-seed."""

    fields: tuple[str, ...] = ()
    """Names of the data's fields where they differ from the task's: e.g. text=body label=stars."""

    template: str | None = None
    """The prompt, with fields in braces, e.g. "{text}"."""

    invocation: str | None = None
    """Fixed text that ends every prompt and switches an activated adapter on, e.g. " It was"."""

    labels: tuple[str, ...] = ()
    """Label words in the order of the label ids; name=word where the data's labels are strings."""

    objective: Literal["cross_entropy", "token_nll"] | None = None
    """The loss: over the candidates, or of the completion's tokens; default: the task's."""

    dtype: Dtype | None = None
    """Of the model's weights; the adapter is float32. Default: float32 on CPU, bfloat16 on CUDA."""

    load_in_4bit: bool = False
    """Quantise the base model to bitsandbytes' nf4 as it is loaded, without double quantisation. Needs
    zotune[quantization]. Folders that are quantised already need no flag."""

    load_in_8bit: bool = False
    """The same to bitsandbytes' int8, LLM.int8()."""

    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto is CUDA where there is one."""

    kv_cache_gb: float | None = None
    """Memory for the KV of prompts, in 1e9 bytes, in scope activated; default: half of what is free."""

    num_threads: int | None = None
    """CPU threads; default: PyTorch's choice."""

    trust_remote_code: bool = False
    """Run code that comes with a model from the hub."""

    def __post_init__(self) -> None:
        check(self)

    @property
    def quantization_bits(self) -> Literal[4, 8] | None:
        """What --load-in-4bit and --load-in-8bit ask for."""
        return 4 if self.load_in_4bit else 8 if self.load_in_8bit else None

    @property
    def field_names(self) -> dict[str, str]:
        """--fields as {task's field: data's field}."""
        return dict(pair.split("=", 1) for pair in self.fields)


def make_config(values: Mapping[str, Any], base: Config | None = None, where: str = "") -> Config:
    """A Config from names and plain values, over `base`.

    Raises:
        InputError: an unknown name (with the nearest known one), a value of the wrong type or out of range.
    """
    prefix = f"{where}: " if where else ""
    hints = get_type_hints(Config)
    names = [field.name for field in fields(Config)]
    merged = {name: getattr(base, name) for name in names} if base else {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            raise InputError(f"{prefix}unknown setting {key!r}" + (f"; did you mean {close[0]}?" if close else ""))
        merged[name] = _typed(value, hints[name], f"{prefix}{name}")
    try:
        return Config(**merged)
    except InputError as error:
        raise InputError(f"{prefix}{error}") from None


def read_toml(path: Path) -> Config:
    """The settings of a TOML file, such as a run's config.toml."""
    return make_config(toml_values(path), where=str(path))


def toml_values(path: Path) -> dict[str, Any]:
    """What a TOML file holds, unchecked."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from error


def write_toml(config: Config, path: Path) -> None:
    """Write the settings that are not None; `read_toml` gives the same Config back."""
    values = {key: value for key, value in asdict(config).items() if value is not None and value != {}}
    path.write_text(tomli_w.dumps(values), encoding="utf-8")


def _typed(value: Any, hint: Any, name: str) -> Any:
    """`value` as `hint` (the types used in Config), or an InputError that names it."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        if option is type(None) and value is None:
            return None
        if get_origin(option) is Literal and value in get_args(option):
            return value
        if get_origin(option) is dict and isinstance(value, Mapping):
            return dict(value)
        if get_origin(option) is tuple and isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
            return tuple(value)
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if option is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if option in (str, bool) and isinstance(value, option):
            return value
    raise InputError(f"{name}: expected {_describe(options)}, got {value!r}")


def _describe(options: tuple[Any, ...]) -> str:
    def describe(option: Any) -> str:
        if get_origin(option) is Literal:
            return " or ".join(map(repr, get_args(option)))
        if get_origin(option) is tuple:
            return "a list of strings"
        if get_origin(option) is dict:
            return "a table"
        return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[option]

    return " or ".join(describe(option) for option in options if option is not type(None))
