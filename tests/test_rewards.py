"""Rewards of texts: TRL's functions run as they are, built-ins give known values, and a bad reward harms nothing."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests import some_rewards
from tests.pages import ROOT, blocks
from zotune.errors import InputError, RewardError, TrainingError
from zotune.rewards import waiting
from zotune.rewards.builtin import BUILTINS, make_builtin
from zotune.rewards.checkers import countdown, gsm8k, last_number
from zotune.rewards.functions import source_of
from zotune.rewards.weighted import Rewards

BAD = """
import os, time, signal, sys

def raises(completions, **kwargs):
    for completion in completions:
        if completion == "b":
            raise KeyError("no such thing")
    return [1.0] * len(completions)

def needs_two(completions, **kwargs):
    return [1.0 if len(completions) == 1 else 1 / 0] * len(completions)

def too_few(completions, **kwargs):
    return [1.0 for completion in completions if completion != "b"]

def nan(completions, **kwargs):
    return [float("nan") if completion == "b" else 1.0 for completion in completions]

def infinite(completions, **kwargs):
    return [float("-inf") if completion == "b" else 1.0 for completion in completions]

def huge(completions, **kwargs):
    return [10 ** 400 if completion == "b" else 1.0 for completion in completions]

def text(completions, **kwargs):
    return ["high" if completion == "b" else 1.0 for completion in completions]

def nested(completions, **kwargs):
    return [[1.0] if completion == "b" else 1.0 for completion in completions]

def one_number(completions, **kwargs):
    return 0.5

def nothing(completions, **kwargs):
    return None

def generator(completions, **kwargs):
    return (1.0 for completion in completions)

def leaves(completions, **kwargs):
    sys.exit(3)

def dies(completions, **kwargs):
    if "b" in completions:
        os.kill(os.getpid(), signal.SIGKILL)
    return [1.0] * len(completions)

def hangs(completions, **kwargs):
    if "b" in completions:
        time.sleep(1000)
    return [1.0] * len(completions)

def slow(completions, **kwargs):
    time.sleep(0.3 * len(completions))
    return [1.0] * len(completions)

def process_id(completions, **kwargs):
    return [os.getpid()] * len(completions)

def asks(completions, ground_truth):
    return [1.0] * len(completions)

def starts_a_process(completions, **kwargs):
    import subprocess
    child = subprocess.Popen(["sleep", "1000"])
    open(kwargs["file"][0], "w").write(str(child.pid))
    time.sleep(1000)

not_a_function = 3
"""


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("rewards") / "bad.py"
    path.write_text(BAD)
    return str(path)


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], str]]:
    monkeypatch.setattr(logging.getLogger("zotune"), "propagate", True)
    with caplog.at_level(logging.INFO, "zotune"):
        yield lambda: caplog.text


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def once(functions: Any, completions: list[Any], columns: dict[str, Any] | None = None, **options: Any) -> list[float]:
    prompts = [f"prompt {index}" for index in range(len(completions))]
    weights = options.pop("weights", None)
    with Rewards(functions, weights) as rewards:
        return rewards(prompts, completions, columns or {}, **options).values.tolist()


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return condition()


def is_gone(pid: int) -> bool:
    """Whether it has ended; what nobody has waited for yet counts."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


# ---- functions in the shapes of TRL's documentation


def test_functions_of_the_shapes_that_trl_documents_run_unchanged():
    functions: list[Any] = [
        some_rewards.num_tokens, some_rewards.num_tokens_as_documented, some_rewards.num_characters,
        some_rewards.is_right, some_rewards.not_empty,
    ]  # fmt: skip
    with Rewards(functions) as rewards:
        found = rewards(
            ["Solve 2x + 3 = 7.", "Solve 3x - 5 = 10."],
            [r" It is \boxed{2}.", r" So \boxed{6}."],
            {"ground_truth": ["2", "5"], "prompt": ["not passed on", "either"]},
            completion_ids=[[6303, 13], [304, 279, 12884, 13]],
        )
    assert {name: values.tolist() for name, values in found.by_name.items()} == {
        "num_tokens": [2.0, 4.0], "num_tokens_as_documented": [2.0, 4.0], "num_characters": [17.0, 14.0],
        "is_right": [1.0, 0.0], "not_empty": [1.0, 1.0],
    }  # fmt: skip
    assert found.values.tolist() == [23.0, 23.0]
    assert found.values.dtype == found.by_name["is_right"].dtype == np.float64


def test_messages_of_chat_data_reach_the_function_as_they_are():
    right, wrong = chat("<think>1 + 2 is 3.</think><answer>12</answer>"), chat("It is 8.")
    assert once(some_rewards.thinks_then_answers, [right, wrong]) == [1.0, 0.0]


def test_none_leaves_a_record_out_of_that_reward_and_of_all_where_all_say_none():
    with Rewards([some_rewards.math_only, some_rewards.code_only]) as rewards:
        found = rewards(["p"] * 3, ["c"] * 3, {"task": ["math", "code", "art"]})
    np.testing.assert_array_equal(found.by_name["math_only"], [1.0, np.nan, np.nan])
    np.testing.assert_array_equal(found.values, [1.0, -1.0, np.nan])


def test_the_state_of_training_is_given_where_there_is_one():
    assert once(some_rewards.grows, ["c"], trainer_state=SimpleNamespace(global_step=7)) == [7.0]
    with pytest.raises(RewardError, match=r"reward grows asks for trainer_state, which is no column of the data"):
        once(some_rewards.grows, ["c"])


def test_an_object_and_truth_values_are_a_reward_and_numbers():
    assert once(some_rewards.Shorter(2), ["ab", "abc"]) == [1.0, 0.0]


def test_arrays_are_lists_of_numbers():
    assert once(lambda completions: np.array([1, 2], dtype=np.int8), ["a", "b"]) == [1.0, 2.0]
    assert once(lambda completions: [np.float32(0.5), np.True_], ["a", "b"]) == [0.5, 1.0]


def test_async_functions_run_while_a_loop_runs_as_in_a_notebook():
    import asyncio

    async def local(completions: list[str]) -> list[float]:
        await asyncio.sleep(0)
        return [2.0] * len(completions)

    async def notebook() -> list[float]:
        with Rewards(local) as rewards:
            return [rewards(["p"], ["c"], {}).values[0] for _ in range(2)]

    assert asyncio.run(notebook()) == [2.0, 2.0]


def test_a_function_gets_the_arguments_that_it_names(bad):
    columns = {"ground_truth": ["x"], "other": [1]}
    assert once(f"{bad}:asks", ["c"], columns) == [1.0]
    with pytest.raises(RewardError) as raised:
        once(f"{bad}:asks", ["c"], {"other": [1]})
    assert "asks for ground_truth, which is no column of the data; it can have prompts, completions, other" in str(
        raised.value
    )


# ---- weights and names


def test_the_reward_is_the_weighted_sum():
    def minus_one(completions: list[str]) -> list[float | None]:
        return [-1.0, None, None]

    def two(completions: list[str]) -> list[float | None]:
        return [2.0, 2.0, None]

    np.testing.assert_array_equal(once([minus_one, two], ["a", "b", "c"], weights=[0.5, 10]), [19.5, 20.0, np.nan])


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([1.0], "2, one for each reward, got 1"), ([1.0, np.nan], "finite numbers, got nan"),
     ([1.0, "2"], "finite numbers, got '2'")],
)  # fmt: skip
def test_weights_are_one_finite_number_for_each(weights, expected):
    with pytest.raises(InputError, match=f"reward_weights: expected {expected}"):
        Rewards(["length", "format"], weights)


def test_rewards_of_the_same_name_are_told_apart():
    with Rewards(["length", "length:5", "length"]) as rewards:
        assert rewards.names == ("length", "length:5", "length_2")


def test_no_records_have_no_rewards():
    with Rewards(["length"]) as rewards:
        assert rewards([], [], {}).values.shape == (0,)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("gsm8", "expected FILE.py:function, package.module:function or one of .* got 'gsm8'; do you mean gsm8k?"),
        ("no/such/file.py:score", "there is no file no/such/file.py"),
        ("zotune.no_such:score", "reward zotune.no_such:score cannot be loaded: ModuleNotFoundError: No module named"),
        ("zotune.run.scores:exact_macth", "zotune.run.scores has no exact_macth; do you mean exact_match?"),
        ("regex", "regex needs a pattern behind a colon"),
        ("regex:(", r"'\(' is no regular expression"),
        ("length:many", "takes a number of characters behind a colon, as in length:80, got 'many'"),
        ("format:x", "format takes nothing behind a colon, got 'x'"),
        ([], "expected one reward or more, got none"),
        ([3], "expected functions or their names, got 3"),
        ([some_rewards.Shorter], "expected functions or their names, got <class"),
    ],
)
def test_what_is_no_reward_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        Rewards(given)


def test_a_file_that_cannot_be_loaded_is_refused_with_the_reason(tmp_path, bad):
    broken = tmp_path / "broken.py"
    broken.write_text("def score(completions:\n")
    with pytest.raises(InputError, match=r"broken.py:score cannot be loaded: SyntaxError"):
        Rewards(f"{broken}:score")
    with pytest.raises(InputError, match=r"no_such cannot be loaded: .*bad.py has no no_such"):
        Rewards(f"{bad}:no_such")
    with pytest.raises(InputError, match=r"not_a_function in .* is no function, but 3"):
        Rewards(f"{bad}:not_a_function")


def test_a_file_imports_its_neighbours_and_its_name_stands_in_no_ones_way(tmp_path):
    (tmp_path / "neighbour.py").write_text("value = 4.0\n")
    (tmp_path / "json.py").write_text(
        "import neighbour\n\ndef score(completions, **kwargs):\n    return [neighbour.value] * len(completions)\n"
    )
    assert once(f"{tmp_path / 'json.py'}:score", ["a"]) == [4.0]


def test_a_module_lies_where_the_command_was_started(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def score(completions):\n    return [3] * len(completions)\n")
    monkeypatch.chdir(tmp_path)
    assert once("mine:score", ["a"]) == [3.0]


def test_a_reward_model_is_refused():
    def model(completions: list[str]) -> list[float]:
        return []

    model.forward = model.parameters = model  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="is a model; give a function that asks it"):
        source_of(model)


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan"), "1", True])
def test_a_time_is_seconds_above_zero(seconds):
    with pytest.raises(InputError, match="reward_timeout_s: expected seconds above 0"):
        Rewards("length", reward_timeout_s=seconds)


def test_lists_of_other_lengths_and_columns_with_taken_names_are_refused():
    with Rewards("length") as rewards:
        with pytest.raises(InputError, match="rewards of 2 completions: x has 1 values"):
            rewards(["p", "p"], ["c", "c"], {"x": [1]})
        with pytest.raises(InputError, match="column completions of the data has the name of an argument"):
            rewards(["p"], ["c"], {"completions": [1]})


# ---- where functions run


def test_user_code_is_named_in_the_log_and_runs_in_another_process(bad, messages):
    (pid,) = once(f"{bad}:process_id", ["c"])
    assert pid != os.getpid()
    assert f"runs the code of {bad}, with your rights" in messages()


def test_nothing_of_a_file_runs_in_this_process(tmp_path):
    path = tmp_path / "marks.py"
    path.write_text("import os\npid = os.getpid()\n\ndef score(completions):\n    return [pid] * len(completions)\n")
    assert once(f"{path}:score", ["c"]) != [os.getpid()]


def test_a_function_that_cannot_be_pickled_runs_here_without_a_limit_and_the_log_says_so(messages):
    assert once(lambda completions: [os.getpid()], ["c"]) == [os.getpid()]
    assert "in this one, where reward_timeout_s cannot end it" in messages()


def test_a_function_whose_module_no_other_process_finds_runs_here(monkeypatch, messages):
    module = ModuleType("made_on_the_spot")
    exec("def score(completions):\n    return [5.0] * len(completions)", vars(module))
    monkeypatch.setitem(sys.modules, "made_on_the_spot", module)
    assert once(module.score, ["c"]) == [5.0]
    assert "reward score cannot be loaded in another process: ModuleNotFoundError" in messages()


def test_a_script_is_not_run_again_by_the_process_of_its_reward(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "print('top')\nfrom zotune.rewards.weighted import Rewards\n"
        "def mine(completions):\n    return [2.0] * len(completions)\n"
        "with Rewards([mine, 'tests.some_rewards:num_characters']) as rewards:\n"
        "    print(rewards(['p'], ['c'], {}).values)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "top\n[3.]\n"


def test_shares_of_a_batch_keep_their_order(bad):
    completions = ["x" * length for length in range(5)]
    with Rewards([f"{bad}:process_id", some_rewards.num_characters], num_processes=2) as rewards:
        found = rewards(["p"] * 5, completions, {})
        assert rewards(["p"], ["c"], {}).by_name["num_characters"].tolist() == [1.0]
    assert found.by_name["num_characters"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert len(set(found.by_name[f"{bad}:process_id"])) == 2


def test_what_cannot_cross_to_another_process_is_named():
    with pytest.raises(RewardError, match="cannot have the data in another process: TypeError"):
        once(some_rewards.num_characters, ["a"], {"lock": [threading.Lock()]})


def test_what_a_function_prints_is_seen(tmp_path):
    path = tmp_path / "prints.py"
    path.write_text("def score(completions):\n    print('seen')\n    return [1.0] * len(completions)\n")
    code = f"from zotune.rewards.weighted import Rewards\nwith Rewards({f'{path}:score'!r}) as r: r(['p'], ['c'], {{}})"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "seen\n"


# ---- bad rewards: each says what it did, with the record, and the next call works


@pytest.fixture(scope="module")
def bad_rewards(bad: str) -> Iterator[Callable[..., Rewards]]:
    """One set of processes for each function, which all tests of it share."""
    made: dict[str, Rewards] = {}

    def get(name: str) -> Rewards:
        if name not in made:
            made[name] = Rewards([f"{bad}:{name}", "length"], reward_timeout_s=1.0)
        return made[name]

    yield get
    for rewards in made.values():
        rewards.close()


RECORD = r"; the record: prompt 'What is b\?', completion 'b', answer 'B'"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", r"raised KeyError: 'no such thing' \(.*bad.py:7\)" + RECORD),
        ("too_few", "returned 0 values for 1 completion" + RECORD),
        ("nan", r"returned no number \(NaN\); None leaves a record out" + RECORD),
        ("infinite", "returned -inf: it must be finite" + RECORD),
        ("huge", r"returned 10*\.*: it must be finite" + RECORD),
        ("text", "returned 'high', which is neither a number nor None" + RECORD),
        ("nested", r"returned \[1.0\], which is neither a number nor None" + RECORD),
        ("dies", "lost its process, which was ended by SIGKILL" + RECORD),
        ("hangs", "gave no answer within 1.0 s, the limit of reward_timeout_s" + RECORD),
    ],
)
def test_a_bad_answer_ends_with_the_record_and_the_next_call_works(bad_rewards, name, message):
    rewards = bad_rewards(name)
    columns = {"answer": ["A", "B", "C"]}
    prompts = ["What is a?", "What is b?", "What is c?"]
    with pytest.raises(RewardError, match=f"^reward .*bad.py:{name} {message}(\\n|$)"):
        rewards(prompts, ["a", "b", "c"], columns)
    assert rewards(prompts[:1], ["a"], {"answer": ["A"]}).values.tolist() == [2.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("one_number", "returned 0.5, where a list of 2 numbers is expected; the record: prompt 'p'"),
        ("nothing", "returned None, where a list of 2 numbers is expected"),
        ("generator", "returned <generator object .*, where a list of 2 numbers is expected"),
        ("leaves", "raised SystemExit: 3"),
        (
            "needs_two",
            r"raised ZeroDivisionError: division by zero \(.*\), for 2 records at once; the first: prompt 'p'",
        ),
    ],
)
def test_an_answer_that_is_none_is_refused(bad_rewards, name, message):
    with pytest.raises(RewardError, match=message):
        bad_rewards(name)(["p", "p"], ["a", "c"], {})


def test_a_function_that_raises_here_is_found_and_its_traceback_kept():
    def fails(completions: list[str]) -> list[float]:
        return [1 / (completion != "b") for completion in completions]

    with pytest.raises(RewardError, match=r"raised ZeroDivisionError.* completion 'b'(\n|$)") as raised:
        once(fails, ["a", "b", "c"])
    assert "return [1 / (completion" in raised.value.__notes__[0]
    assert isinstance(raised.value, TrainingError)  # ends a run as a full disk does, with its journal kept


def test_long_texts_are_shortened_and_messages_shown_by_their_content(bad_rewards):
    with pytest.raises(RewardError) as raised:
        bad_rewards("one_number")([chat("p" * 5000)], [chat("q" * 5000)], {"long": ["r" * 5000]})
    assert len(str(raised.value)) < 600
    assert "prompt 'pppp" in str(raised.value)


def test_a_given_function_that_hangs_is_ended_too():
    with Rewards(some_rewards.hangs_on_b, reward_timeout_s=1.0) as rewards:
        began = time.monotonic()
        with pytest.raises(RewardError, match=r"hangs_on_b gave no answer within 1.0 s.*completion 'b'"):
            rewards(["p"] * 3, ["a", "b", "c"], {})
        assert time.monotonic() - began < 30
        assert rewards(["p"], ["a"], {}).values.tolist() == [1.0]


def test_the_record_is_found_though_loading_the_function_again_takes_longer_than_a_call_may(tmp_path):
    (tmp_path / "slow_to_load.py").write_text(
        "import time\ntime.sleep(1.5)\ndef hangs_on_b(completions):\n    while 'b' in completions:\n        pass\n"
        "    return [1.0] * len(completions)\n"
    )
    with (
        Rewards(f"{tmp_path / 'slow_to_load.py'}:hangs_on_b", reward_timeout_s=1.0) as rewards,
        pytest.raises(RewardError, match=r"gave no answer within 1.0 s.*completion 'b'"),
    ):
        rewards(["p"] * 3, ["a", "b", "c"], {})


def test_a_slow_function_blames_no_record(bad):
    with (
        Rewards(f"{bad}:slow", reward_timeout_s=0.5) as rewards,
        pytest.raises(RewardError, match=r"gave no answer within 0.5 s.*, for 4 records at once; the first: prompt"),
    ):
        rewards(["p"] * 4, ["c"] * 4, {})


def test_a_long_call_says_how_many_processes_have_answered(tmp_path, monkeypatch, caplog):
    (tmp_path / "last_is_slow.py").write_text(
        "import time\ndef score(completions):\n    if 'slow' in completions:\n        time.sleep(3)\n"
        "    return [1.0] * len(completions)\n"
    )
    monkeypatch.setattr(waiting, "FIRST_S", 1.0)
    with (
        Rewards(f"{tmp_path / 'last_is_slow.py'}:score", num_processes=3) as rewards,
        caplog.at_level(logging.INFO, "zotune"),
    ):
        caplog.clear()
        rewards(["p"] * 6, ["a"] * 6, {})
        assert not caplog.messages
        assert rewards(["p"] * 6, ["slow", *["a"] * 5], {}).values.tolist() == [1.0] * 6
    assert caplog.messages == ["rewards of 6 records: 2 of 3 processes have answered after 1 s"]


def test_a_pattern_that_never_ends_is_ended():
    with (
        Rewards("regex:(a+)+b", reward_timeout_s=0.5) as rewards,
        pytest.raises(RewardError, match=r"reward regex:\(a\+\)\+b gave no answer within 0.5 s"),
    ):
        rewards(["p"], ["a" * 60], {})


def test_a_process_that_was_killed_between_calls_is_replaced(bad):
    with Rewards(f"{bad}:process_id") as rewards:
        (first,) = rewards(["p"], ["c"], {}).values
        os.kill(int(first), signal.SIGKILL)
        with pytest.raises(RewardError, match="lost its process, which was ended by SIGKILL"):
            rewards(["p"], ["c"], {})
        (second,) = rewards(["p"], ["c"], {}).values
    assert second != first
    assert wait_until(lambda: is_gone(int(second)))


def test_a_stopped_process_does_not_hold_a_large_message(bad):
    with Rewards(f"{bad}:process_id", reward_timeout_s=0.5) as rewards:
        (pid,) = rewards(["p"], ["c"], {}).values
        os.kill(int(pid), signal.SIGSTOP)
        with pytest.raises(RewardError, match=r"gave no answer|lost its process|closed"):
            rewards(["p"], ["c" * 10_000_000], {})
        assert rewards(["p"], ["c"], {}).values[0] != pid


def test_what_a_function_has_started_ends_with_it(bad, tmp_path):
    file = tmp_path / "pid"
    with Rewards(f"{bad}:starts_a_process", reward_timeout_s=1.0) as rewards, pytest.raises(RewardError):
        rewards(["p"], ["c"], {"file": [str(file)]})
    assert wait_until(lambda: is_gone(int(file.read_text())))


def test_an_interrupt_leaves_no_answer_for_the_next_call(bad):
    with Rewards([f"{bad}:slow", f"{bad}:process_id"]) as rewards:
        before = signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            with pytest.raises(KeyboardInterrupt):
                rewards(["p"] * 4, ["c"] * 4, {})
        finally:
            signal.signal(signal.SIGALRM, before)
        assert rewards(["p"], ["c"], {}).by_name[f"{bad}:slow"].tolist() == [1.0]


@pytest.mark.parametrize("function", ["time.sleep(1000)", "re.match('(a+)+b', 'a' * 60)"], ids=["waits", "computes"])
def test_processes_end_with_a_parent_that_is_killed(tmp_path, function):
    """Also where the function never lets another thread run, as the engine of regular expressions does."""
    pid = tmp_path / "pid"
    (tmp_path / "mine.py").write_text(
        "import os, re, time\n\ndef score(completions):\n"
        f"    open({str(pid)!r}, 'w').write(str(os.getpid()))\n    {function}\n"
    )
    code = (
        "from zotune.rewards.weighted import Rewards\n"
        f"Rewards({f'{tmp_path}/mine.py:score'!r}, reward_timeout_s=1)(['p'], ['c'], {{}})\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment)
    try:
        assert wait_until(lambda: pid.exists() and pid.read_text() != "")
    finally:
        parent.kill()
        parent.wait()
    assert wait_until(lambda: is_gone(int(pid.read_text())), 15)


# ---- built-ins


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("He has 40 + 2.\n#### 42", "42"), ("#### 1,234", "1234"), ("#### -5", "-5"), ("#### 3.50", "3.5"),
        ("#### $18", "18"), ("#### 42\n\nQuestion: 7 + 1?\n#### 8", "42"), ("The answer is 1,000,000.", "1000000"),
        ("It costs $2.50", "2.5"), ("so 10-5", "5"), ("so 10 - 5 = 5 and -3", "-3"), ("it is -$4", "-4"), (".5", "0.5"),
        ("it is \u22127", "-7"), ("1,2,3", "3"), ("42.", "42"), ("none", None), ("#### none", None), ("", None),
    ],
)  # fmt: skip
def test_the_number_of_an_answer_is_found(text, number):
    assert (None if (found := last_number(text)) is None else str(found.normalize().__format__("f"))) == number


def test_gsm8k_compares_numbers_and_not_their_writing():
    golds = ["6 * 7 = 42\n#### 42", "#### 1,000", "#### -3.5", "#### 7", "no number here"]
    texts = ["So it is 42.0", "#### 1000", "It is -3.50.", "I think 8", "5"]
    np.testing.assert_array_equal(once("gsm8k", texts, {"answer": golds}), [1.0, 1.0, 1.0, 0.0, np.nan])
    assert gsm8k("nothing", "#### 1") == 0.0


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("<answer>(3 + 5) * 7 - 2</answer>", 1.0),
        ("<think>3*5?</think> <answer> (3+5)*7-2 = 54 </answer>", 1.0),
        ("Let me see.\n7 * (3 + 5) - 2", 1.0),
        ("<answer>7 \u00d7 (3 + 5) \u2212 2</answer>", 1.0),
        ("<answer>1 + 1</answer> no, <answer>-2 + 7 * (5 + 3)</answer>", 1.0),
        ("<answer>(3 + 5) * 7</answer>", 0.0),  # 2 is not used
        ("<answer>3 + 5 + 7 + 2</answer>", 0.0),  # another value
        ("<answer>54 + 3 - 3 + 5 - 5</answer>", 0.0),  # other numbers
        ("<answer>(3 + 5) * 7 - 2 + 2 - 2</answer>", 0.0),  # 2 three times
        ("<answer>(3 + 5) * 7 - 2 * 1</answer>", 0.0),
        ("<answer>7 ** 2 + 3 + 5</answer>", 0.0),
        ("<answer>7 // 2 + 3 * 5</answer>", 0.0),
        ("<answer>3 / (5 - 7 + 2)</answer>", 0.0),  # by zero
        ("<answer>(3 + 5) * 7 - 2)</answer>", 0.0),
        ("<answer>__import__('os').getpid() + 3 + 5 + 7 + 2</answer>", 0.0),
        ("<answer>" + "(" * 150 + "3 + 5 * 7 + 2</answer>", 0.0),
        ("<answer>" + "-" * 100_000 + "3+5+7+2</answer>", 0.0),
        ("<answer>" + "-" * 180 + "(3+5)*7-2</answer>", 1.0),
        ("", 0.0),
    ],
)  # fmt: skip
def test_a_countdown_equation_uses_each_number_once_and_gives_the_target(text, right):
    assert countdown(text, [2, 3, 5, 7], 54) == right


def test_countdown_is_exact_in_fractions_and_reads_its_columns():
    assert countdown("8 / (3 - 8 / 3)", [8, 3, 8, 3], 24) == 1.0
    found = once("countdown", ["1 + 2", "1 * 2", "1"], {"nums": [[1, 2], [1, 2], None], "target": [3, 3, 1]})
    np.testing.assert_array_equal(found, [1.0, 0.0, np.nan])
    with pytest.raises(RewardError, match=r"countdown needs the columns nums .* there is no target, but prompts, nums"):
        once("countdown", ["1"], {"nums": [[1]]})


def test_texts_are_compared_with_the_best_right_answer():
    columns = {"answers": [["Rome", "Paris"], {"text": ["Rome"], "answer_start": [3]}, None], "year": [1, 2, 1989]}
    texts = ["The Paris!", "in Rome, Italy", "1989"]
    np.testing.assert_array_equal(once("exact_match", texts, columns), [1.0, 0.0, np.nan])
    np.testing.assert_array_equal(once("f1", [chat(text) for text in texts], columns), [1.0, 0.5, np.nan])
    assert once("exact_match:year", texts, columns) == [0.0, 0.0, 1.0]
    with pytest.raises(RewardError, match="f1:place finds no right answers: the data have no column place, but"):
        once("f1:place", texts, columns)


def test_regex_length_and_format():
    assert once(r"regex:^\d+$", ["12", "12 apples"]) == [1.0, 0.0]
    assert once("length", ["", "abc"]) == [0.0, 3.0]
    assert once("length:4", ["", "abc", "abcd", "abcdef", "a" * 9]) == [0.0, 0.75, 1.0, 0.5, 0.0]
    thought = "<think>a\nb</think>\n<answer>c</answer>"
    texts = [thought, f" {thought}\n", f"{thought} more", "<answer>c</answer>", thought + thought, "<think>a</answer>"]
    assert once("format", texts) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert once("format", [chat(thought)]) == [1.0]


def test_every_built_in_is_a_function_as_trl_calls_them():
    data = {"answer": ["4"], "nums": [[4]], "target": [4], "other": [None]}
    for name in BUILTINS:
        if name == "math_verify" and find_spec("math_verify") is None:
            continue
        reward = make_builtin("regex:4" if name == "regex" else name)
        found = reward(prompts=["2 + 2?"], completions=["4"], completion_ids=[[1]], trainer_state=None, **data)
        assert found == [0.0 if name == "format" else 1.0]


def test_mathematics_is_compared_as_such():
    pytest.importorskip("math_verify")
    golds = [r"\frac{1}{3}", r"$x^2 + 1$", "42", "0.5"]
    texts = [r"It is $\boxed{\frac{2}{6}}$", "$1 + x^2$", "The answer is 41", r"$\frac{1}{2}$"]
    assert once("math_verify", texts, {"solution": golds}) == [1.0, 1.0, 0.0, 1.0]


@pytest.mark.skipif(find_spec("math_verify") is not None, reason="math-verify is installed")
def test_mathematics_without_its_package_says_how_to_install_it():
    with pytest.raises(InputError, match=r'needs the package math-verify: pip install "zotune\[math\]"'):
        Rewards("math_verify")


def test_the_example_of_the_page_prints_what_the_page_says(capsys):
    page: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(ROOT / "docs" / "rewards.md", "python"):
        if "mezo_finetune" not in block and "GRPO" not in block:
            exec(block, page)
    assert capsys.readouterr().out == "[ 0.955 -0.03 ]\n[1. 0.]\n"
    answers = [[{"role": "assistant", "content": text}] for text in ("42 ", "43")]
    assert page["score"](prompts=["", ""], completions=answers, answer=["42", "42"]) == [1.0, 0.0]
