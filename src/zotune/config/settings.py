"""Every setting of a run and its default. The docstring of a field is its `--help`.

Flags, TOML keys and keyword arguments are these same words. `None` means: chosen when the run starts, from the task,
the data or the model (run.py); config.toml in the run folder holds what was chosen.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from zotune.adapter.forms import FORMS
from zotune.config.checks import check
from zotune.engine import ENGINES
from zotune.zo.estimators import ESTIMATORS
from zotune.zo.noise import KINDS
from zotune.zo.objectives import OBJECTIVES
from zotune.zo.optimizers import OPTIMIZERS

Scope = Literal["activated", "everywhere"]
Dtype = Literal["float32", "bfloat16", "float16"]
Quantization = Literal["nf4", "int8"]
SchedulerType = Literal["constant", "linear", "cosine", "constant_with_warmup"]
# The rows of the tables are the choices.
if TYPE_CHECKING:
    EngineName: TypeAlias = str
    EstimatorName: TypeAlias = str
    OptimizerName: TypeAlias = str
    NoiseKind: TypeAlias = str
    ObjectiveName: TypeAlias = str
    Tuning: TypeAlias = str
else:
    EngineName = Literal[tuple(ENGINES)]
    EstimatorName = Literal[tuple(ESTIMATORS)]
    OptimizerName = Literal[tuple(OPTIMIZERS)]
    NoiseKind = Literal[tuple(KINDS)]
    ObjectiveName = Literal[tuple(OBJECTIVES)]
    Tuning = Literal[(*FORMS, "prompt_tuning", "full")]


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

    noise_steps: int | None = None
    """Steps that the subspace of low_rank noise, or a block of --noise-blocks, is kept; default: 50."""

    noise_blocks: int | None = None
    """Move one of this many blocks of layers at a time, one after the other; default: all layers in every step."""

    sparsity: float | None = None
    """Keep this share of each tensor, its entries of largest magnitude, unmoved (Sparse-MeZO: 0.75); default: none."""

    weight_decay: float = 0.0
    """Weight decay of the optimizer."""

    clip: float | None = None
    """Cut slopes to this multiple of the running median of |slope|; default: never."""

    seed: int = 0
    """Seed of the adapter's start, the order of examples and the directions."""

    data_seed: int = 0
    """Seed of the held-out split and of samples of the data; apart from --seed, so that runs share their data."""

    tuning: Tuning | None = None
    """What is trained: `lora` is a LoRA adapter; `lora_fa` the same with A frozen; `vera` trains vectors that scale
    the rows of an A and a B that are frozen and shared by all modules (use a large --lora-rank, such as 256);
    `prompt_tuning` trains vectors in front of every prompt and changes no layer; `full` trains the model's own
    parameters, at the memory of inference, and exports a model folder. Default: lora_fa in scope activated, lora in
    scope everywhere."""

    init_lora_weights: Literal["kaiming", "eva"] | None = None
    """Where A starts with lora and lora_fa (B is 0): `eva`, the default in scope activated, at the principal components
    of each layer's inputs over 256 training examples; `kaiming`, in scope everywhere, at random (PEFT's True)."""

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

    objective: ObjectiveName | None = None
    """The loss: `cross_entropy` over the candidate answers, or `token_nll`, that of the completion's tokens. Default:
    the task's."""

    dtype: Dtype | None = None
    """Of the model's weights; the adapter is float32. Default: float32 on CPU, bfloat16 on CUDA."""

    quantization: Quantization | None = None
    """Quantise the base model as it is loaded, with bitsandbytes: to 4 bits (`nf4`) or to 8 (`int8`). Needs
    zotune[quantization]. A folder that is quantised already needs no flag. Default: not quantised."""

    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto is CUDA where there is one."""

    kv_cache_gb: float | None = None
    """Memory for the KV of prompts, in 1e9 bytes, in scope activated; default: half of what is free."""

    num_threads: int | None = None
    """CPU threads; default: PyTorch's choice."""

    trust_remote_code: bool = False
    """Run code that comes with a model from the hub."""

    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings that one method or engine alone has, by its name: --adam.beta1 0.9, or [adam] in a TOML file."""

    def __post_init__(self) -> None:
        check(self)

    @property
    def field_names(self) -> dict[str, str]:
        """--fields as {task's field: data's field}."""
        return dict(pair.split("=", 1) for pair in self.fields)
