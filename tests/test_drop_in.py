"""`ZerothOrderTrainer` does what scripts ask of transformers' Trainer and TRL's SFTTrainer, or says why it cannot."""

import json
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, EarlyStoppingCallback, TrainerCallback, TrainingArguments

from tests.conftest import REVIEWS
from tests.test_chat import TEMPLATE
from zotune import InputError, ZerothOrderTrainer, mezo_finetune
from zotune.config.reading import read_toml

PAIRS = [
    {"prompt": f"{text}, said", "completion": f" {answer}"}
    for text, answer in (("a great film", "my sister"), ("a bore", "the cast"), ("warm", "again and again")) * 4
]
LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
OURS: dict[str, Any] = {"estimator": "one_sided", "directions": 2, "num_threads": 1}


def arguments(folder, **others) -> TrainingArguments:
    settings: dict[str, Any] = {
        "max_steps": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "logging_steps": 2,
        "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "report_to": "none", "learning_rate": 0.01,
    }  # fmt: skip
    return TrainingArguments(str(folder), **{**settings, **others})


@pytest.fixture
def loaded(opt_dir):
    return AutoModelForCausalLM.from_pretrained(opt_dir, dtype=torch.float32)


class Seen(TrainerCallback):
    """What it was told, in order."""

    def __init__(self, stop_at=None):
        self.events, self.stop_at = [], stop_at

    def __getattribute__(self, name):
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        def told(args, state, control, **given):
            self.events.append((name, state.global_step))
            if name == "on_step_end" and state.global_step == self.stop_at:
                control.should_training_stop = True
            return control

        return told


def test_a_script_of_trl_trains_logs_and_saves(loaded, opt_dir, tmp_path):
    seen = Seen()
    args = arguments(tmp_path / "out", eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2)
    trainer = ZerothOrderTrainer(
        model=loaded, args=args, train_dataset=Dataset.from_list(PAIRS), eval_dataset=Dataset.from_list(PAIRS[:3]),
        processing_class=AutoTokenizer.from_pretrained(opt_dir), peft_config=LoraConfig(**LORA), callbacks=[seen],
        **OURS,
    )  # fmt: skip
    with trainer:
        output = trainer.train()
        assert (output.global_step, trainer.state.global_step) == (4, 4)
        history = list(trainer.state.log_history)
        evaluations = [line["eval_loss"] for line in history if "eval_loss" in line]
        losses = [line["loss"] for line in history if "loss" in line]
        assert len(losses) == 2
        assert [line["step"] for line in history if "eval_loss" in line] == [0, 2, 4]
        assert np.mean(losses) == pytest.approx(output.training_loss)
        assert trainer.evaluate()["eval_loss"] == pytest.approx(evaluations[-1], rel=1e-5)
        found = trainer.evaluate(PAIRS[:3], metric_key_prefix="test")
        assert found["test_loss"] == pytest.approx(evaluations[-1], rel=1e-5)
        trainer.save_model(str(tmp_path / "saved"))
        trainer.save_model()  # into the run's own folder, whose files stay
        trainer.save_state()
    names = [name for name, _ in seen.events]
    assert names[:4] == ["on_init_end", "on_train_begin", "on_epoch_begin", "on_step_begin"]
    assert names.count("on_step_begin") == names.count("on_step_end") == 4
    assert [step for name, step in seen.events if name == "on_save"] == [2, 4]
    run = tmp_path / "out"
    assert {"journal.jsonl", "config.toml", "adapter_config.json", "checkpoint-2", "checkpoint-4", "trainer_state.json",
            "tokenizer.json"} <= {path.name for path in run.iterdir()}  # fmt: skip
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(opt_dir), tmp_path / "saved")
    assert tuned.active_peft_config.r == 4
    tensors = [value for name, value in tuned.state_dict().items() if "lora_B" in name]
    assert any(value.abs().sum() > 0 for value in tensors)


def test_it_is_the_run_that_zotune_makes_of_the_same_settings(opt_dir, tmp_path):
    with ZerothOrderTrainer(
        str(opt_dir), arguments(tmp_path / "a"), train_dataset=PAIRS, peft_config=LoraConfig(**LORA), **OURS
    ) as trainer:
        trainer.train()
    mezo_finetune(
        str(opt_dir), PAIRS, output_dir=tmp_path / "b", num_steps=4, batch_size=4, learning_rate=0.01, seed=42,
        lora_rank=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], scope="everywhere", tuning="lora",
        eval_strategy="no", **OURS,
    )  # fmt: skip
    journals = [(tmp_path / name / "journal.jsonl").read_text() for name in ("a", "b")]
    assert journals[0] == journals[1]


def test_a_callback_ends_training_and_a_run_goes_on(opt_dir, tmp_path):
    def made(*callbacks):
        return ZerothOrderTrainer(
            str(opt_dir), arguments(tmp_path / "out"), train_dataset=PAIRS, peft_config=LoraConfig(**LORA),
            callbacks=callbacks, **OURS,
        )  # fmt: skip

    with made(Seen(stop_at=2)) as trainer:
        assert trainer.train().global_step == 2
    with made() as trainer, pytest.raises(InputError, match="exists; choose another"):
        trainer.train()
    with made() as trainer:
        assert trainer.train(resume_from_checkpoint=True).global_step == 4


def test_the_best_adapter_is_saved_and_early_stopping_of_transformers_works(opt_dir, tmp_path):
    args = arguments(
        tmp_path / "out", max_steps=12, eval_strategy="steps", eval_steps=1, load_best_model_at_end=True,
        metric_for_best_model="eval_loss", greater_is_better=False, learning_rate=3.0, save_strategy="steps",
        save_steps=1, lr_scheduler_type="constant",
    )  # fmt: skip
    with ZerothOrderTrainer(
        str(opt_dir), args, train_dataset=PAIRS, eval_dataset=PAIRS[:2], peft_config=LoraConfig(**LORA),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)], **OURS,
    ) as trainer:  # fmt: skip
        assert trainer.train().global_step < 12  # at such a rate the loss rises
        assert trainer.state.best_metric == min(
            line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line
        )
        trainer.save_model(str(tmp_path / "saved"))
    best, saved = (path / "adapter_model.safetensors" for path in (tmp_path / "out" / "best", tmp_path / "saved"))
    assert best.read_bytes() == saved.read_bytes()


def test_a_classification_has_metrics_and_predictions(opt_dir, tmp_path):
    def compute_metrics(prediction):
        return {"right": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    with ZerothOrderTrainer(
        str(opt_dir), arguments(tmp_path / "out", max_steps=1), train_dataset=REVIEWS[:12], eval_dataset=REVIEWS[:6],
        peft_config=LoraConfig(**LORA), compute_metrics=compute_metrics, labels=("terrible", "great"), **OURS,
    ) as trainer:  # fmt: skip
        found = trainer.evaluate()
        assert found["eval_right"] == pytest.approx(found["eval_accuracy"])
        predicted = trainer.predict(REVIEWS[:6])
    assert np.shape(predicted.predictions) == (6, 2)
    assert np.asarray(predicted.label_ids).tolist() == [review["label"] for review in REVIEWS[:6]]
    assert predicted.metrics is not None
    assert predicted.metrics["test_accuracy"] == pytest.approx(found["eval_accuracy"])
    assert predicted.metrics["test_right"] == pytest.approx(found["eval_right"])


def test_predictions_of_completions_are_texts(opt_dir, tmp_path):
    with ZerothOrderTrainer(
        str(opt_dir), arguments(tmp_path / "out", max_steps=1), train_dataset=PAIRS, peft_config=LoraConfig(**LORA),
        metrics=["f1"], max_new_tokens=4, **OURS,
    ) as trainer:  # fmt: skip
        trainer.train()
        predicted = trainer.predict(PAIRS[:2])
    assert [type(text) for text in np.asarray(predicted.predictions).tolist()] == [str, str]
    assert np.asarray(predicted.label_ids).tolist() == ["my sister", "the cast"]
    assert predicted.metrics is not None
    assert 0 <= predicted.metrics["test_f1"] <= 1


def test_chats_and_an_activated_adapter_of_peft(opt_dir, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(opt_dir)
    tokenizer.chat_template = TEMPLATE
    talk = [{"role": "user", "content": "a film?"}, {"role": "assistant", "content": "great"}]
    with ZerothOrderTrainer(
        str(opt_dir), arguments(tmp_path / "out", max_steps=1), train_dataset=[{"messages": talk}] * 4,
        processing_class=tokenizer, peft_config=LoraConfig(**LORA), scope="activated", **OURS,
    ) as trainer:  # fmt: skip
        trainer.train()
        trainer.save_model(str(tmp_path / "saved"))
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert tokenizer.decode(config["alora_invocation_tokens"]) == "<assistant>"
    assert (tmp_path / "saved" / "chat_template.jinja").read_text() == TEMPLATE


@pytest.mark.parametrize("config", [None, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), "in it"])
def test_what_is_trained_is_what_peft_says(loaded, opt_dir, tmp_path, config):
    model: Any = loaded
    if config == "in it":
        model, config = get_peft_model(loaded, LoraConfig(**LORA)), None
        wanted = "lora"
    else:
        wanted = "full" if config is None else "prompt_tuning"
    settings = OURS if wanted != "full" else {"num_threads": 1}
    with ZerothOrderTrainer(
        model, arguments(tmp_path / "out", max_steps=1), train_dataset=PAIRS, peft_config=config,
        processing_class=AutoTokenizer.from_pretrained(opt_dir), **settings,
    ) as trainer:  # fmt: skip
        trainer.train()
        trainer.save_model()
    assert read_toml(tmp_path / "out" / "config.toml").tuning == wanted
    assert (tmp_path / "out" / "journal.jsonl").is_file()
    if wanted == "full":
        assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), transformers.OPTForCausalLM)


def test_what_nobody_chose_is_zotunes_own(opt_dir, tmp_path):
    args = TrainingArguments(str(tmp_path / "out"), report_to="none", use_cpu=True)
    trainer = ZerothOrderTrainer(str(opt_dir), args, train_dataset=PAIRS, peft_config=LoraConfig(r=4))
    assert not {"learning_rate", "optimizer", "target_modules", "dtype"} & set(trainer.settings)
    assert trainer.settings["num_train_epochs"] == 3.0
    assert trainer.settings["eval_strategy"] == "no"


@pytest.mark.parametrize(
    ("given", "lora", "more", "message"),
    [
        ({"lr_scheduler_type": "polynomial"}, {}, {}, r"args.lr_scheduler_type: expected one of constant, linear"),
        ({"optim": "adafactor"}, {}, {}, "args.optim: adafactor is not here"),
        ({"label_smoothing_factor": 0.1}, {}, {}, "args.label_smoothing_factor: the loss is that of the tokens"),
        ({"push_to_hub": True}, {}, {}, "args.push_to_hub: a run writes files alone"),
        ({"save_strategy": "epoch"}, {}, {}, "args.save_strategy: give 'steps'"),
        ({}, {"use_rslora": True}, {}, "peft_config.use_rslora: True is not here"),
        ({}, {"target_modules": ".*proj"}, {}, "peft_config.target_modules: give names in a list"),
        ({}, {"bias": "all"}, {}, "peft_config.bias: biases stay as they are"),
        ({}, {}, {"data_collator": print}, "data_collator: batches are made of texts"),
        ({}, {}, {"optimizers": (None, 1)}, "optimizers: an optimizer is named by args.optim"),
        ({}, {}, {"train_dataset": [{"input_ids": [1, 2]}]}, r"train_dataset: the records are token ids"),
        ({}, {}, {"train_dataset": {"train": PAIRS}}, "train_dataset: expected one data set, got train"),
    ],
)
def test_what_cannot_hold_is_refused_in_one_sentence(opt_dir, tmp_path, given, lora, more, message):
    with pytest.raises(InputError, match=message) as refused:
        ZerothOrderTrainer(
            str(opt_dir), arguments(tmp_path / "out", **given),
            **{"train_dataset": PAIRS, "peft_config": LoraConfig(**{**LORA, **lora}), **more},
        )  # fmt: skip
    assert "\n" not in str(refused.value)


def test_shares_of_steps_are_counted(opt_dir, tmp_path):
    args = arguments(tmp_path / "out", max_steps=-1, num_train_epochs=4, warmup_steps=0.25, logging_steps=0.5)
    trainer = ZerothOrderTrainer(str(opt_dir), args, train_dataset=PAIRS, peft_config=LoraConfig(**LORA), **OURS)
    assert (trainer.settings["warmup_steps"], trainer.settings["logging_steps"]) == (3, 6)  # of 12


def test_arguments_of_trl_are_taken(opt_dir, tmp_path):
    trl = pytest.importorskip("trl")
    tokenizer = AutoTokenizer.from_pretrained(opt_dir)
    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    talk = [{"role": "user", "content": "a film?"}, {"role": "assistant", "content": "great"}]
    args = trl.SFTConfig(
        str(tmp_path / "out"), max_steps=2, use_cpu=True, bf16=False, report_to="none", max_length=60,
        per_device_train_batch_size=2, chat_template_path=str(tmp_path / "chat.jinja"), save_strategy="no",
    )  # fmt: skip
    with ZerothOrderTrainer(
        str(opt_dir), args, train_dataset=[{"messages": talk}] * 4, processing_class=tokenizer,
        peft_config=LoraConfig(**LORA), **OURS,
    ) as trainer:  # fmt: skip
        assert trainer.train().global_step == 2
    config = read_toml(tmp_path / "out" / "config.toml")
    assert (config.task, config.max_length, config.scope) == ("chat", 60, "everywhere")
    packed = trl.SFTConfig(str(tmp_path / "x"), use_cpu=True, bf16=False, packing=True)
    with pytest.raises(InputError, match=r"args\.packing: examples never share a row"):
        ZerothOrderTrainer(str(opt_dir), packed, train_dataset=PAIRS, peft_config=LoraConfig(**LORA))
