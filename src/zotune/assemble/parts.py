"""The parts of a run, put together once: what holds, the examples as token ids, and the engine."""

import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from transformers import PreTrainedTokenizerBase as Tokenizer

from zotune.adapter.spec import AdapterSpec, LoraSpec, PromptSpec
from zotune.adapter.start import has_lens
from zotune.assemble.adapter import Adapter
from zotune.assemble.bounds import check_rank
from zotune.assemble.data import Data
from zotune.assemble.encoding import AnyEncoder, make_encoder
from zotune.assemble.model import Model, facts_of, open_engine
from zotune.assemble.precision import slopes_hold
from zotune.assemble.stream import RecordStream
from zotune.config.run import Run, make_metrics, paced, resolve
from zotune.config.settings import Config
from zotune.config.tables import settings_for
from zotune.data.digest import columns_digest, examples_digest
from zotune.data.templates import Encoder
from zotune.data.texts import WEIGHT, TextExample
from zotune.engine.kind import Measured
from zotune.engine.torch.model_kind import head_modules
from zotune.engine.torch.targets import check_targets
from zotune.errors import InputError, NoLens
from zotune.run.own_metrics import ComputeMetrics, OwnMetrics
from zotune.zo.noise import layer_of
from zotune.zo.objectives import RewardObjective
from zotune.zo.objectives.reward import Judge
from zotune.zo.protocol import Engine, Example

logger = logging.getLogger("zotune")


@dataclass(frozen=True)
class Parts:
    """Everything that a trainer needs from settings, data and model."""

    run: Run
    engine: Engine
    tokenizer: Tokenizer
    train: list[Example]
    evaluation: list[Example]
    demonstrations: str = ""
    stream: RecordStream | None = None
    own_metrics: OwnMetrics = field(default_factory=OwnMetrics)

    def digests(self, version: int) -> dict[str, str]:
        """What a journal knows the examples by."""
        both = {"training": self.train, "evaluation": self.evaluation}
        found = {name: examples_digest(examples, version) for name, examples in both.items()}
        if self.run.config.judges_texts or WEIGHT in self.run.config.field_names:
            found |= {f"records of {name}": columns_digest(examples) for name, examples in both.items()}
        return found


def assemble(
    config: Config,
    data: Data,
    model: Model,
    begun: AdapterSpec | None = None,
    judge: Judge | None = None,
    compute_metrics: ComputeMetrics | None = None,
) -> Parts:
    """The parts of a run; with `begun`, of one that began with an adapter of this form. `judge` has its rewards.

    Raises:
        InputError: what was asked for cannot be done with this task, model or engine.
    """
    metrics = make_metrics(config, data.task, compute_metrics).prepared(model.tokenizer, model.stop_token_ids)
    if model.is_masked and not metrics.of_labels:
        raise InputError(f"--metrics: {config.model} is a masked model, which writes no texts")
    data = data.in_words(model.tokenizer)
    try:
        parts = _assembled(config, data, model, begun, metrics.num_new_tokens)
    except NoLens as error:
        if config.estimator is not None:
            raise
        logger.info("estimator: one_sided (%s)", error)
        parts = _assembled(replace(config, estimator="one_sided"), data, model, begun, metrics.num_new_tokens)
    objective = parts.run.objective.prepared(model.tokenizer)
    if isinstance(objective, RewardObjective):
        objective = objective.judged_by(judge, model.stop_token_ids)
    return replace(parts, run=replace(parts.run, objective=objective), own_metrics=metrics)


def _assembled(config: Config, data: Data, model: Model, begun: AdapterSpec | None, num_new_tokens: int) -> Parts:
    adapter = Adapter.read(config.adapter) if config.adapter is not None and begun is None else None
    if adapter:
        config = adapter.settings_of(config)
    run = resolve(config, data.task, facts_of(model, config))
    for choice in run.choices:
        logger.info("%s: %s (%s)", choice.name, choice.value, choice.reason)
    settings = run.config
    if settings.tuning not in ("full", "prompt_tuning") and settings.adapter is None:
        check_targets(model.structure, settings.target_modules or ())
        if begun is None:
            check_rank(settings, model)
    if adapter:
        adapter.check_fits(model, data.task, settings)
        begun = adapter.begun_with(settings)
    prompt = None
    if settings.tuning == "prompt_tuning":
        made = PromptSpec(**settings_for(settings, "prompt_tuning", PromptSpec))
        prompt = begun if isinstance(begun, PromptSpec) and settings.adapter else made
        prompt = replace(prompt, task_type=model.task_type or "FEATURE_EXTRACTION", modules_to_save=_head_of(model))
    assert settings.max_length
    encoder = make_encoder(
        model, data.task, settings, room_for_prompts(settings, settings.max_length, num_new_tokens),
        activated=settings.scope == "activated",
        virtual_tokens=prompt.virtual_tokens if prompt else (), demonstrations=data.demonstrations,
    )  # fmt: skip
    train = encode_texts(encoder, data.train, "training")
    evaluation = encode_texts(encoder, data.evaluation, "evaluation")
    of_model = len(run.choices)
    run = paced(run, len(train))
    for choice in run.choices[of_model:]:
        logger.info("%s: %s (%s)", choice.name, choice.value, choice.reason)
    settings = run.config
    spec = prompt or _lora(settings, encoder, model, begun)
    measured = _measured(run, begun)
    opened = partial(
        open_engine, model, spec=spec, num_probes=run.estimator.num_probes(settings.directions or 0),
        start_from=train if measured else (), measured=measured,
    )  # fmt: skip
    engine = opened(settings)
    if any(choice.name == "dtype" for choice in run.choices) and not slopes_hold(run, engine, train):
        engine.close()
        del engine
        gc.collect()
        run = replace(run, config=replace(settings, dtype="float32"))
        engine = opened(run.config)
    try:
        if adapter:
            adapter.warn_of_other_weights(engine, settings)
        _check(run, engine)
    except InputError:
        engine.close()
        raise
    stream = RecordStream(config, data.task, partial(_encoded, data, model, encoder)) if config.stream_data else None
    return Parts(run, engine, model.tokenizer, train, evaluation, data.demonstrations, stream)


def _encoded(data: Data, model: Model, encoder: AnyEncoder, texts: list[TextExample]) -> list[Example]:
    return encoder.encode(replace(data, train=texts, evaluation=[]).in_words(model.tokenizer).train).examples


def room_for_prompts(settings: Config, max_length: int, num_new_tokens: int = 0) -> int:
    """The most tokens of a prompt: `max_length`, less what is written behind it for rewards or metrics.

    Raises:
        InputError: that leaves none.
    """
    num_new_tokens = num_new_tokens or settings.max_new_tokens or 0
    room = max_length - num_new_tokens
    if room < 2:
        raise InputError(
            f"--max-new-tokens {num_new_tokens} leaves no room for a prompt within {max_length} tokens (--max-length)"
        )
    return room


def encode_texts(encoder: AnyEncoder, texts: Sequence[TextExample], what: str) -> list[Example]:
    """Examples of the texts; the log says how many prompts are cut."""
    encoded = encoder.encode(texts)
    if encoded.num_truncated:
        logger.info(
            "%d of %d %s prompts are longer than %d tokens and lose their %s", encoded.num_truncated, len(texts), what,
            encoder.max_length, "beginning" if isinstance(encoder, Encoder) else "end",
        )  # fmt: skip
    return encoded.examples


def _lora(settings: Config, encoder: AnyEncoder, model: Model, begun: AdapterSpec | None) -> AdapterSpec | None:
    """The form of LoRA; None: the model's own parameters are trained."""
    if settings.tuning == "full":
        return None
    if settings.adapter is not None and begun is not None:  # its form is the run's
        return replace(begun, task_type=model.task_type)
    assert settings.tuning
    return LoraSpec(
        rank=settings.lora_rank,
        alpha=settings.lora_alpha,
        target_modules=settings.target_modules or (),
        invocation_tokens=encoder.invocation if encoder.activated else None,
        peft_type=settings.tuning,
        frozen_seed=0 if settings.tuning == "lora" else settings.seed,
        start=begun.start if begun else None,
        task_type=model.task_type,
        modules_to_save=_head_of(model),
    )


def _head_of(model: Model) -> tuple[str, ...]:
    """The modules of a classification head, where there is to be one."""
    return head_modules(model.structure) if model.num_labels is not None else ()


def _measured(run: Run, begun: AdapterSpec | None) -> frozenset[Measured]:
    """What a run measures on its examples before its first step; one that goes on has it."""
    start = begun.start if begun else None
    measured: set[Measured] = {"eva"} if run.config.init_lora_weights == "eva" and start is None else set()
    if "lens" in run.estimator.needs and not has_lens(start):
        measured.add("lens")
    return frozenset(measured)


def _check(run: Run, engine: Engine) -> None:
    """Refuse what this engine cannot give, and blocks of layers that would be empty."""
    settings = run.config
    for needs, option, instead in (
        (run.objective.needs, f"--objective {settings.objective}", "use another engine or model"),
        (run.estimator.needs, f"--estimator {settings.estimator}", "use spsa, or another engine or model"),
    ):
        for need in needs:
            if (obstacle := engine.why_not(need)) is not None:
                raise InputError(f"{option}: {obstacle}; {instead}")
    blocks = settings.noise_blocks or 1
    layers = {layer_of(name) for name in engine.tensor_shapes}
    if {layer % blocks for layer in layers} != set(range(blocks)):
        raise InputError(
            f"--noise-blocks must leave each block a layer: {blocks} blocks of {len(layers)} adapted layers"
        )
