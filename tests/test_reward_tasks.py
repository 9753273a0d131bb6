"""The tasks of runs/reward_tasks.py: what their rewards call right, and that no held-out prompt was trained on."""

import importlib.util
import json
from pathlib import Path

import pytest

from zotune.rewards.weighted import Rewards

FILE = Path(__file__).parents[1] / "runs" / "reward_tasks.py"


@pytest.fixture(scope="module")
def tasks():
    spec = importlib.util.spec_from_file_location("reward_tasks", FILE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


KEYS = ["name", "age"]
JUDGED = [
    ("json_reward", {"keys": KEYS}, ' {"name": "Ann", "age": 3}\n', 1.0),
    ("json_reward", {"keys": KEYS}, '{"age": {"years": 3}, "name": null}', 1.0),
    ("json_reward", {"keys": KEYS}, '{"name": "Ann"}', 0.0),
    ("json_reward", {"keys": KEYS}, '{"name": "Ann", "age": 3, "city": "Rome"}', 0.0),
    ("json_reward", {"keys": KEYS}, '{"name": "Ann", "age": 3, "age": 4}', 0.0),
    ("json_reward", {"keys": KEYS}, '```json\n{"name": "Ann", "age": 3}\n```', 0.0),
    ("json_reward", {"keys": KEYS}, '["name", "age"]', 0.0),
    ("json_reward", {"keys": KEYS}, "[" * 100_000, 0.0),
    ("json_reward", {"keys": KEYS}, "", 0.0),
    ("json_shaped_reward", {"keys": KEYS}, '{"name": "Ann", "age": 3}', 1.0),
    ("json_shaped_reward", {"keys": KEYS}, 'Here: {"name": "Ann", "age": 3}. Bye', 0.5),
    ("json_shaped_reward", {"keys": KEYS}, '{"name": "Ann"}', 0.25),
    ("json_shaped_reward", {"keys": KEYS}, "} no JSON {", 0.0),
    ("bullets_reward", {}, "- red\n- green\n\n- blue", 1.0),
    ("bullets_reward", {}, "* red\n* green\n* blue\n", 1.0),
    ("bullets_reward", {}, "- red\n- green", 0.0),
    ("bullets_reward", {}, "- red\n- red\n- blue", 0.0),
    ("bullets_reward", {}, "1. red\n2. green\n3. blue", 0.0),
    ("bullets_reward", {}, "Here they are:\n- red\n- green\n- blue", 0.0),
    ("bullets_reward", {}, "- red\n- green\n-", 0.0),
    ("addition_reward", {"answer": 85}, "47 + 38 = 85.", 1.0),
    ("addition_reward", {"answer": 85}, "85", 1.0),
    ("addition_reward", {"answer": 85}, "85 is 47 + 38", 0.0),
    ("addition_reward", {"answer": 85}, "47 + 38 = 185", 0.0),
    ("addition_reward", {"answer": 85}, "I do not know", 0.0),
]


@pytest.mark.parametrize(("name", "columns", "text", "wanted"), JUDGED)
def test_a_reward_judges_texts_and_messages_alike(tasks, name, columns, text, wanted):
    listed = {column: [value] for column, value in columns.items()}
    for completion in (text, [{"role": "assistant", "content": text}]):
        assert getattr(tasks, name)(prompts=["?"], completions=[completion], **listed) == [wanted]


@pytest.mark.parametrize("name", ["json", "bullets", "addition"])
def test_no_held_out_prompt_is_a_prompt_of_training(tasks, name):
    train, test = ({json.dumps(row["prompt"]) for row in rows} for rows in tasks.records(name))
    assert (len(train), len(test)) == (500, 200)
    assert not train & test
    assert tasks.records(name) == tasks.records(name)


def test_the_files_have_what_the_rewards_take(tasks, tmp_path):
    tasks.write(tmp_path)
    for name, task in tasks.TASKS.items():
        rows = [json.loads(line) for line in (tmp_path / f"{name}-test.jsonl").read_text("utf-8").splitlines()]
        columns = {column: [row[column] for row in rows] for column in rows[0] if column != "prompt"}
        prompts = [row["prompt"] for row in rows]
        assert task.reward(prompts=prompts, completions=[message[-1:] for message in prompts], **columns) == [0.0] * 200


def test_zotune_calls_them_by_their_place(tasks):
    with Rewards([f"{FILE}:json_reward"]) as rewards:
        completions = [[{"role": "assistant", "content": text}] for text in ('{"name": 1, "age": 2}', "no")]
        found = rewards(prompts=["a", "b"], completions=completions, columns={"keys": [KEYS, KEYS]})
    assert found.values.tolist() == [1.0, 0.0]
