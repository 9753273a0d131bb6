"""`ZerothOrderTrainer`: a drop-in for transformers' Trainer and TRL's SFTTrainer.

Scripts change one import. Data are texts: `text`, prompts and completions, or chats; what the Trainer would do with
them is done by a run of zotune, whose folder is `args.output_dir`.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel, TrainerCallback, TrainerState, TrainingArguments
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback, PrinterCallback, ProgressCallback
from transformers.trainer_pt_utils import log_metrics, metrics_format, save_metrics, save_state
from transformers.trainer_utils import PredictionOutput, TrainOutput

from zotune.assemble.data import task_of
from zotune.assemble.encoding import make_encoder
from zotune.assemble.model import find_model
from zotune.assemble.parts import encode_texts, room_for_prompts
from zotune.config.reading import read_run_config
from zotune.config.run import make_metrics
from zotune.data.chat import in_words
from zotune.data.records import load_records
from zotune.data.texts import expand, to_texts
from zotune.drop_in.arguments import adapter_settings, fields_of, merged, settings_of
from zotune.drop_in.callbacks import Told, measures
from zotune.engine.torch.loading import load_tokenizer
from zotune.errors import InputError
from zotune.finetune import Result, finished, make_trainer, reopen
from zotune.run.evaluation import evaluate
from zotune.run.trainer import MeZOTrainer
from zotune.zo.protocol import Example

_REFUSED = {
    "data_collator": "batches are made of texts by zotune; leave it out",
    "compute_loss_func": "give an objective of zotune instead, by objective=...",
    "optimizers": "an optimizer is named by args.optim or by optimizer=...",
    "optimizer_cls_and_kwargs": "an optimizer is named by args.optim or by optimizer=...",
    "preprocess_logits_for_metrics": "compute_metrics is given what zotune.run.own_metrics says",
    "model_init": "give the model",
    "quantization_config": "give a model that is quantised, or quantization='nf4'",
}


class ZerothOrderTrainer:
    """Trains as transformers' `Trainer` or TRL's `SFTTrainer` would be asked to, with forward passes only.

    Args:
        model: a hub id, a folder, or a loaded causal model; also one with a new adapter of PEFT in it.
        args: `TrainingArguments`, or TRL's `SFTConfig`.
        train_dataset, eval_dataset: records with `text`, `prompt` and `completion`, `messages`, or `chosen` and
            `rejected`; a classification needs `labels=...`.
        processing_class: the tokenizer; default: that of the model's name.
        peft_config: `LoraConfig` or `PromptTuningConfig`; None: all parameters are trained, as Trainer does.
        compute_metrics: as of `zotune.mezo_finetune`.
        callbacks: `TrainerCallback`s.
        formatting_func: makes a text of a record, as in SFTTrainer.
        settings: of zotune by their names; they win over `args` and `peft_config`.

    Raises:
        InputError: something asked for cannot hold here.
    """

    log_metrics = log_metrics
    save_metrics = save_metrics
    save_state = save_state
    metrics_format = staticmethod(metrics_format)

    def __init__(
        self,
        model: str | Path | PreTrainedModel | PeftModel,
        args: TrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Tokenizer | None = None,
        compute_loss_func: Any = None,
        compute_metrics: Callable[[Any], Mapping[str, Any]] | None = None,
        callbacks: Sequence[TrainerCallback | type[TrainerCallback]] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: Any = None,
        preprocess_logits_for_metrics: Any = None,
        peft_config: PeftConfig | None = None,
        formatting_func: Callable[[Any], str] | None = None,
        model_init: Any = None,
        quantization_config: Any = None,
        tokenizer: Tokenizer | None = None,
        **settings: Any,
    ) -> None:
        given = {
            "data_collator": data_collator, "compute_loss_func": compute_loss_func, "model_init": model_init,
            "optimizers": next((each for each in optimizers if each is not None), None),
            "optimizer_cls_and_kwargs": optimizer_cls_and_kwargs, "quantization_config": quantization_config,
            "preprocess_logits_for_metrics": preprocess_logits_for_metrics,
        }  # fmt: skip
        for name, why in _REFUSED.items():
            if given[name] is not None:
                raise InputError(f"{name}: {why}")
        self.args = TrainingArguments("trainer_output") if args is None else args
        if isinstance(model, PeftModel):
            if peft_config is not None:
                raise InputError("peft_config: the model has an adapter already; give one of the two")
            peft_config = model.active_peft_config
            model = model.unload()  # of an adapter that nobody has trained
        self.model: Any = model
        named = model if isinstance(model, str | Path) else model.name_or_path
        self.processing_class: Tokenizer = processing_class or tokenizer or load_tokenizer(str(named))
        self.train_dataset = _texts(train_dataset, formatting_func, "train_dataset")
        self.eval_dataset = _texts(eval_dataset, formatting_func, "eval_dataset")
        self.compute_metrics = compute_metrics
        size = len(self.train_dataset) if self.train_dataset is not None else None
        columns = tuple(self.train_dataset[0]) if size else ()
        asked = {**settings_of(self.args, size), **fields_of(self.args, columns)}
        self.settings = merged({**asked, **adapter_settings(peft_config, self.processing_class)}, settings)
        self.state = TrainerState()
        shown = PrinterCallback if self.args.disable_tqdm else ProgressCallback
        reports = get_reporting_integration_callbacks(self.args.report_to)
        self.callback_handler = CallbackHandler(
            [DefaultFlowCallback, *reports, shown, *(callbacks or ())], model, self.processing_class, None, None
        )
        self._told = Told(self.args, self.state, self.callback_handler)
        self._run: MeZOTrainer | None = None
        self.result: Result | None = None
        self.callback_handler.on_init_end(self.args, self.state, self.control)

    # ---- training ------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: bool | str | None = None, **_: Any) -> TrainOutput:
        """Train; with `resume_from_checkpoint`, go on with the run in `args.output_dir`, from its last step."""
        resumed = resume_from_checkpoint or getattr(self.args, "resume_from_checkpoint", None)
        if resumed and self._run is None:
            self._run = reopen(
                self.settings["output_dir"], model=self._loaded, tokenizer=self.processing_class,
                callbacks=[self._told], compute_metrics=self.compute_metrics,
            )  # fmt: skip
        run = self._opened()
        self.result = finished(run)
        if self.args.load_best_model_at_end and run.folder.best.is_dir():
            self.state.best_model_checkpoint = str(run.folder.best)
        totals = self._told.totals
        return TrainOutput(run.step, totals["train_loss"], {**totals, "epoch": self.state.epoch})

    def _opened(self) -> MeZOTrainer:
        """The run, begun where it is not yet."""
        if self._run is None:
            if self.train_dataset is None:
                raise InputError("train_dataset: name the data to train on")
            self._run = make_trainer(
                self.model, self.train_dataset, self.eval_dataset, tokenizer=self.processing_class,
                callbacks=[self._told], compute_metrics=self.compute_metrics, **self.settings,
            )  # fmt: skip
        return self._run

    @property
    def _loaded(self) -> PreTrainedModel | None:
        return self.model if isinstance(self.model, PreTrainedModel) else None

    # ---- evaluation ----------------------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss and metrics on the evaluation data, or on others."""
        run = self._opened()
        if eval_dataset is None and not run.eval_examples:
            raise InputError("eval_dataset: there is none; give it to the trainer or to evaluate")
        examples = None if eval_dataset is None else self._encoded(eval_dataset)[0]
        found = measures(run.evaluate(examples), metric_key_prefix)
        self._told.evaluated(found)
        return {**found, "epoch": self.state.epoch}

    def predict(self, test_dataset: Any, ignore_keys: Any = None, metric_key_prefix: str = "test") -> PredictionOutput:
        """Of a classification the log-probabilities of the labels and the labels; else what the model writes, and what
        the data have, as texts; with the metrics."""
        run = self._opened()
        examples, task = self._encoded(test_dataset)
        seen: list[Any] = []
        config = read_run_config(run.folder.config)

        def look(prediction: Any) -> Mapping[str, Any]:
            seen.append(prediction)
            return {} if self.compute_metrics is None else self.compute_metrics(prediction)

        metrics = make_metrics(config, task, look)
        stop = find_model(config, self._loaded, self.processing_class, task).stop_token_ids
        found = evaluate(run.engine, run.theta, run.objective, examples,
                         metrics=metrics.prepared(self.processing_class, stop))  # fmt: skip
        (prediction,) = seen
        values = measures(found, metric_key_prefix)
        return PredictionOutput(np.asarray(prediction.predictions), np.asarray(prediction.label_ids), values)

    def _encoded(self, dataset: Any) -> tuple[list[Example], Any]:
        """Other records, as the run has its own."""
        run = self._opened()
        config = read_run_config(run.folder.config)
        records = load_records(_texts(dataset, None, "eval_dataset"), "eval_dataset")
        task = task_of(config, records)
        records = expand(records, task, config.field_names)
        model = find_model(config, self._loaded, self.processing_class, task)
        task, texts = in_words(task, to_texts(records, task, config.field_names), model.tokenizer)
        spec = run.engine.spec
        assert config.max_length
        encoder = make_encoder(
            model, task, config, room_for_prompts(config, config.max_length), config.scope == "activated",
            spec.virtual_tokens if spec else (),
        )  # fmt: skip
        return encode_texts(encoder, texts, "given"), task

    # ---- what is left --------------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter, or the model where all parameters are trained, and the tokenizer; with
        `args.load_best_model_at_end` those of the best evaluation."""
        run = self._opened()
        folder = Path(output_dir or self.settings["output_dir"])
        best = self.state.best_model_checkpoint
        if best is not None:
            shutil.copytree(best, folder, dirs_exist_ok=True)
        elif run.engine.weights is not None:  # a model takes the place of a folder, and this one may be the run's
            shutil.copytree(run.exported, folder, dirs_exist_ok=True)
        else:
            run.save(folder)
        self.processing_class.save_pretrained(folder)

    def push_to_hub(self, *_: Any, **__: Any) -> None:
        raise InputError("push_to_hub: a run writes files alone; push the folder that save_model has written")

    def log(self, logs: dict[str, float], *_: Any) -> None:
        """Put numbers into the log."""
        self._told.log(logs)

    def end(self) -> None:
        """Give back the model and the run's files; also at the end of a `with` statement."""
        if self._run is not None:
            self._run.close()
            self._run = None

    def __enter__(self) -> "ZerothOrderTrainer":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    # ---- what scripts ask a Trainer ------------------------------------------------------------------------------

    @property
    def control(self) -> Any:
        return self._told.control

    @property
    def accelerator(self) -> Any:
        """The state of processes, of which there is one; scripts print by it."""
        from accelerate import PartialState

        return PartialState()

    @property
    def tokenizer(self) -> Tokenizer:
        return self.processing_class

    def is_world_process_zero(self) -> bool:
        return True

    is_local_process_zero = is_world_process_zero

    def add_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        self.callback_handler.add_callback(callback)

    def remove_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        self.callback_handler.remove_callback(callback)

    def pop_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> Any:
        return self.callback_handler.pop_callback(callback)


def _texts(dataset: Any, formatting_func: Callable[[Any], str] | None, name: str) -> Any:
    """A data set whose records can be counted, as texts."""
    if dataset is None:
        return None
    if isinstance(dataset, Mapping):
        raise InputError(f"{name}: expected one data set, got {', '.join(map(str, dataset))}; pick one of them")
    rows = dataset if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__") else list(dataset)
    if not len(rows):
        raise InputError(f"{name} holds no records")
    if formatting_func is not None:
        return [{"text": formatting_func(row)} for row in rows]
    if "input_ids" in rows[0] and not {"text", "prompt", "messages"} & set(rows[0]):
        raise InputError(
            f"{name}: the records are token ids (input_ids); give the texts, which zotune cuts into tokens itself"
        )
    return rows
