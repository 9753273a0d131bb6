"""Runs whose loss is minus a reward of what the model writes: data, objective, journals, and what goes wrong."""

import json
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zotune
from zotune import InputError, evaluate, mezo_finetune, predict, replay_run, resume
from zotune.adapter.peft_files import load_adapter
from zotune.cli import main
from zotune.config.reading import make_config
from zotune.data.chat import in_words
from zotune.data.messages import read_messages
from zotune.data.records import Record
from zotune.data.task_choice import choose_task
from zotune.data.templates import Encoder
from zotune.data.texts import to_texts
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.loading import load_model, load_tokenizer
from zotune.engine.torch.prefix_cache import PrefixCache
from zotune.errors import RewardError
from zotune.run.journal import read_journal
from zotune.run.metrics import read_metrics
from zotune.run.samples import paired_gain, read_samples, write_samples
from zotune.zo.estimators import EvolutionStrategy
from zotune.zo.objectives import RewardObjective, Sample
from zotune.zo.protocol import AT_THETA, Example, Probe, Sampling
from zotune.zo.updates import Slopes

pytestmark = pytest.mark.usefixtures("quick_start")

PROMPTS = [{"prompt": f"{text}, said", "wanted": index % 4} for index, text in enumerate(
    ["a great film", "a bore to watch", "warm and clever", "I hated the cast", "the ending is a mess", "a joy", "cold",
     "it was perfect", "my sister", "the old cinema", "a rainy day", "again"]
)]  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "a great film?"}]
SETTINGS: dict[str, Any] = {
    "eval_data": PROMPTS[:4], "num_steps": 4, "eval_steps": 2, "batch_size": 4, "directions": 2, "max_new_tokens": 6,
    "num_threads": 1,
}  # fmt: skip


def near_twelve(completions, **columns):
    """The optimum is a text of twelve characters."""
    return [-abs(len(text) - 12) / 12 for text in completions]


@pytest.fixture(scope="module")
def chat_dir(opt_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(opt_dir, folder)
    tokenizer = load_tokenizer(str(folder))
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def train(opt_dir, tmp_path):
    def run(name="run", model=opt_dir, data=PROMPTS, reward=near_twelve, **others):
        settings = {**SETTINGS, **others}
        return mezo_finetune(
            str(model),
            data,
            output_dir=str(tmp_path / name),
            **({"reward_funcs": reward} if reward else {}),
            **settings,
        )

    return run


class Fixed:
    """Gives rewards in the order in which they are asked for, and keeps what it was asked."""

    def __init__(self, values):
        self.given, self.calls = np.array(values, dtype=float), []

    def __call__(self, prompts, completions, columns, completion_ids=None):
        self.calls.append((prompts, completions, columns, completion_ids))
        return type("Rewarded", (), {"values": self.given, "by_name": {"fixed": self.given}})

    def close(self):
        pass


def objective_of(opt_dir, judge, **others) -> RewardObjective:
    made = RewardObjective(Sampling(4), **others).prepared(load_tokenizer(str(opt_dir)))
    return made.judged_by(judge, ())


@pytest.fixture(scope="module")
def engine(opt_dir):
    from zotune.adapter.spec import LoraSpec
    from zotune.engine.torch.plain import PlainEngine

    return PlainEngine(load_model(str(opt_dir), "float32", "cpu"), LoraSpec(2, 4.0, ("q_proj", "v_proj")))


@pytest.fixture(scope="module")
def theta(engine):
    from zotune.adapter.forms import initial_theta

    return initial_theta(engine.tensor_shapes, 0)


def examples(count=3):
    return [Example((1, 40 + index), (), ((),), columns={"n": index}, said=f"prompt {index}") for index in range(count)]


PROBES = [Probe(seed, sign * 0.5) for seed in (1, 2) for sign in (1, -1)]


# ---- the objective -------------------------------------------------------------------------------------------------


def test_losses_are_minus_the_mean_reward_of_each_probe_and_prompt(engine, theta, opt_dir):
    rewards = np.arange(4 * 3 * 2).reshape(4, 3, 2)
    judge = Fixed(rewards.ravel())
    losses = objective_of(opt_dir, judge, num_generations=2)(engine, theta, PROBES, examples())
    np.testing.assert_array_equal(losses.values, -rewards.mean(axis=2))
    ((prompts, completions, columns, ids),) = judge.calls
    assert prompts == [f"prompt {index}" for _ in PROBES for index in range(3) for _ in range(2)]
    assert columns["n"] == [index for _ in PROBES for index in range(3) for _ in range(2)]
    assert len(completions) == len(ids) == 24
    assert losses.measured["reward"] == pytest.approx(rewards.mean())
    assert losses.measured["reward_best"] == rewards[3].mean()
    assert [sample.reward for sample in losses.samples] == rewards[0].ravel().tolist()


def test_a_prompt_without_any_reward_is_left_out_and_a_probe_without_one_counts_as_the_others(engine, theta, opt_dir):
    nan = np.nan
    judge = Fixed(np.array([[1, nan, 5], [2, nan, nan], [3, nan, 7], [6, nan, 9]]).ravel())
    losses = objective_of(opt_dir, judge)(engine, theta, PROBES, examples())
    np.testing.assert_array_equal(losses.values, -np.array([[1, 5], [2, 7], [3, 7], [6, 9]]))
    assert losses.measured["left_out"] == 5 / 12
    assert losses.samples[1].reward is None


def test_rewards_without_any_value_end_the_run_in_words(engine, theta, opt_dir):
    with pytest.raises(RewardError, match="no value for any of 12 texts"):
        objective_of(opt_dir, Fixed([np.nan] * 12))(engine, theta, PROBES, examples())


def test_all_probes_of_a_prompt_draw_with_the_same_noise_and_each_step_and_sample_with_its_own(engine, theta, opt_dir):
    judge = Fixed([0.0] * 12)
    sampling = Sampling(6, temperature=1.0)
    objective = replace(objective_of(opt_dir, judge, num_generations=3), sampling=sampling)
    same = [replace(AT_THETA, seed=seed) for seed in (1, 2)]  # two probes at the same place
    first, again, other = (
        objective(engine, theta, probes, examples(2)).samples for probes in (same, same, PROBES[:2])
    )  # fmt: skip
    texts = judge.calls[0][1]
    assert texts[:6] == texts[6:]
    assert len(set(texts[:3])) > 1
    assert [sample.completion for sample in first] == [sample.completion for sample in again]
    assert [sample.completion for sample in first] != [sample.completion for sample in other]


def test_a_text_ends_before_the_first_stop_string(opt_dir):
    tokenizer = load_tokenizer(str(opt_dir))
    objective = RewardObjective(Sampling(8), stop_strings=(" film", ", said"), tokenizer=tokenizer)
    for text, wanted in (("a great film, said", "a great"), ("a joy, said a film", "a joy"), ("nothing", "nothing")):
        tokens = tokenizer(text, add_special_tokens=False).input_ids
        assert objective.text_of(tuple(tokens)) == wanted
        ends = objective._sampling_of([AT_THETA], 1).ends
        assert ends is not None
        ended = [count for count in range(len(tokens) + 1) if ends(tokens[:count])]
        assert ended == [] if wanted == text else objective.text_of(tuple(tokens[: ended[0]])) == wanted


def test_the_fast_engine_stops_at_a_stop_string_and_the_text_is_the_plain_engines(engine, theta, opt_dir):
    fast = TorchEngine(load_model(str(opt_dir), "float32", "cpu"), engine.spec, PrefixCache(10**6))
    whole = objective_of(opt_dir, Fixed([0.0] * 3)).prepared(load_tokenizer(str(opt_dir)))
    text = whole(engine, theta, [AT_THETA], examples()).samples[0].completion
    stop, computed = text[1:2], []
    for made in (engine, fast):
        for objective in (whole, replace(whole, stop_strings=(stop,))):
            before = made.stats.tokens_computed
            found = objective(made, theta, [AT_THETA], examples()).samples
            computed.append(made.stats.tokens_computed - before)
            assert found[0].completion == (text.partition(stop)[0] if objective.stop_strings else text)
    fast.close()
    assert computed[3] < computed[2]  # of the fast engine, with a stop string and without


def test_a_sampling_crosses_to_other_processes_without_what_ends_a_text(opt_dir):
    sampling = objective_of(opt_dir, Fixed([]), stop_strings=(".",))._sampling_of([AT_THETA], 2)
    copy = pickle.loads(pickle.dumps(sampling))
    assert sampling.ends is not None
    assert copy == replace(sampling, ends=None)


def test_evaluations_take_the_most_likely_tokens(opt_dir):
    objective = replace(objective_of(opt_dir, Fixed([])), sampling=Sampling(4, 1.0), num_generations=5).for_evaluation()
    assert (objective.sampling.temperature, objective.num_generations) == (0.0, 1)


# ---- evolution strategies ------------------------------------------------------------------------------------------


def test_shaping_prompt_by_prompt_gives_each_prompt_the_same_weight():
    losses = np.array([[1.0, 100.0], [2.0, 100.0], [3.0, 400.0], [6.0, 100.0]])
    es = EvolutionStrategy(0.1, shaping="prompt", sides="one")
    slopes = es.tell(es.ask([1, 2, 3, 4]), losses)
    scores = (losses - losses.mean(axis=0)) / losses.std(axis=0)
    np.testing.assert_allclose([slope.value for slope in slopes], scores.mean(axis=1), rtol=1e-12)
    assert sum(slope.value for slope in slopes) == pytest.approx(0.0, abs=1e-12)


def test_each_batch_of_a_step_has_its_share_of_the_directions(engine, theta, opt_dir):
    asked = []

    class Spy(RewardObjective):
        def __call__(self, engine, theta, probes, batch):
            asked.append(([probe.seed for probe in probes], [example.columns["n"] for example in batch]))
            return super().__call__(engine, theta, probes, batch)

    spy = Spy(Sampling(2), judge=Fixed(np.arange(8)), tokenizer=load_tokenizer(str(opt_dir)))
    es = EvolutionStrategy(0.1, batches_per_step=2)
    estimate = es.estimate(spy, engine, theta, examples(4), [1, 2, 3, 4])
    assert asked == [([1, 1, 2, 2], [0, 1]), ([3, 3, 4, 4], [2, 3])]
    assert isinstance(estimate.update, Slopes)
    assert [slope.seed for slope in estimate.update.values] == [1, 2, 3, 4]
    assert es.num_batches == 2


ARMS = {"very": 1.0, "so": 0.6, "a": 0.2}


@pytest.mark.parametrize(("sides", "directions"), [("both", 8), ("one", 16)])
def test_the_best_arm_of_a_bandit_is_found(train, sides, directions):
    """Each word is an arm, whose reward is fixed; the best one is known."""

    def pull(completions, **rest):
        return [ARMS.get(text.strip(), 0.0) for text in completions]

    subjects = ("The film", "The story", "The acting", "My evening", "This movie", "The plot")
    data = [
        {"prompt": f"{subject} {when} was"} for subject in subjects for when in ("overall", "tonight", "at the end")
    ]
    result = train(
        model="demo", data=data, eval_data=data[:6], reward=pull, num_steps=40, eval_steps=40, batch_size=8,
        directions=directions, learning_rate=2e-2, epsilon=5e-2, max_new_tokens=1, temperature=1.0, num_generations=4,
        es={"sides": sides},
    )  # fmt: skip
    assert result.initial.measured["reward"] < 0.7
    assert result.final.measured["reward"] == 1.0
    drawn = [event.measured["reward"] for event in read_metrics(result.run_folder / "metrics.jsonl")[1:-1]]
    assert np.mean(drawn[-5:]) > 2 * np.mean(drawn[:5])


# ---- runs ----------------------------------------------------------------------------------------------------------


def test_a_run_resumes_and_replays_to_the_bit_with_sampling(train, tmp_path):
    class Stop(zotune.Callback):
        def on_step_end(self, event):
            if event.step == 2:
                raise KeyboardInterrupt

    drawn = {"temperature": 1.0, "num_generations": 2, "top_p": 0.9, "batches_per_step": 2}
    whole = train("whole", **drawn)
    with pytest.raises(KeyboardInterrupt):
        train("cut", **drawn, callbacks=[Stop()])
    with pytest.raises(InputError, match="is code, which is never taken from a run folder"):
        resume(tmp_path / "cut")
    with pytest.raises(InputError, match="--reward: the run has"):
        resume(tmp_path / "cut", reward_funcs=[near_twelve, "length"])
    resume(tmp_path / "cut", reward_funcs=near_twelve)
    journals = [(tmp_path / name / "journal.jsonl").read_text().splitlines()[1:] for name in ("whole", "cut")]
    assert journals[0] == journals[1]
    samples = [(tmp_path / name / "samples.jsonl").read_bytes() for name in ("whole", "cut")]
    assert samples[0] == samples[1]
    replay_run(tmp_path / "whole", tmp_path / "replayed")
    theta, again = (load_adapter(path)[0] for path in (whole.adapter, tmp_path / "replayed"))
    assert all(np.array_equal(theta[name], again[name]) for name in theta)


def test_a_run_does_not_go_on_with_answers_that_were_changed_in_between(train, tmp_path):
    class Stop(zotune.Callback):
        def on_step_end(self, event):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("cut", callbacks=[Stop()], data=[{"prompt": f"{n} and {n}", "answer": (n, n)} for n in range(20)])
    kept = tmp_path / "cut/train_data.jsonl"
    before = kept.read_text()
    kept.write_text(before.replace("[3, 3]", "[3, 4]"))
    with pytest.raises(InputError, match=r"was started with other records of (training|evaluation) examples"):
        resume(tmp_path / "cut", reward_funcs=near_twelve)
    kept.write_text(before)
    resume(tmp_path / "cut", reward_funcs=near_twelve)


def test_what_was_written_and_measured_is_in_the_run_folder(train):
    result = train(reward=[near_twelve, "length"], reward_weights=[1.0, 0.5])
    lines = read_samples(result.run_folder / "samples.jsonl")
    assert [line["step"] for line in lines] == [0] * 4 + [2] * 4 + [4] * 4
    for line in lines:
        length = len(line["completion"])
        assert line["rewards"] == {"near_twelve": near_twelve([line["completion"]])[0], "length": length}
        assert line["reward"] == pytest.approx(near_twelve([line["completion"]])[0] + 0.5 * length)
    events = read_metrics(result.run_folder / "metrics.jsonl")
    assert all(event.measured["reward"] == pytest.approx(-event.loss) for event in events)
    assert {"reward/near_twelve", "reward/length", "completion_length", "reward_std"} <= events[1].measured.keys()
    means = [np.mean([line["reward"] for line in lines if line["step"] == step]) for step in (0, 2, 4)]
    assert [event.measured["reward"] for event in events if event.event == "eval"] == pytest.approx(means)
    assert result.summary["reward_gain"]["mean"] == pytest.approx(means[2] - means[0])


def test_the_gain_is_that_of_the_same_prompts(tmp_path):
    def samples(rewards):
        return [Sample(f"prompt {place}", "", reward, {}) for place, reward in enumerate(rewards)]

    path = tmp_path / "samples.jsonl"
    write_samples(path, 0, samples([0.0, None, 0.0, 1.0, 0.0]))
    assert paired_gain(path) is None
    write_samples(path, 5, samples([9.0] * 5))
    write_samples(path, 5, samples([1.0, 1.0, 0.0, 1.0, 1.0]))  # again, after a resume
    gain = paired_gain(path)
    assert gain is not None
    assert gain["mean"] == 0.5  # of four pairs
    assert gain["half_interval_95"] == pytest.approx(1.959963984540054 * np.std([1, 0, 0, 1], ddof=1) / 2)
    assert gain["p_value"] == pytest.approx(0.5, abs=0.02)  # signs of two gains: half of the draws are as large
    path.write_bytes(path.read_bytes() + b'{"step": 7, "rew')
    assert paired_gain(path) == gain


def test_rewards_by_name_need_not_be_named_again(train, tmp_path):
    result = train(reward=["length:12"])
    assert resume(result.run_folder).summary["steps"] == 4
    found = evaluate(PROMPTS[:4], adapter=result.adapter)
    assert found.measured == pytest.approx(result.final.measured)
    assert [sample.prompt for sample in found.samples] == [record["prompt"] for record in PROMPTS[:4]]
    texts = predict(PROMPTS[:4], adapter=result.adapter, max_new_tokens=6)
    assert texts == [sample.completion for sample in found.samples]


def test_a_file_of_rewards_works_from_the_command_and_its_code_is_named_again(opt_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my.py").write_text("def score(prompts, completions, wanted, **rest):\n    return [-abs(len(text) - want) for "
                             "text, want in zip(completions, wanted)]\n")  # fmt: skip
    Path("prompts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in PROMPTS))
    words = "--reward my.py:score --num-steps 2 --max-new-tokens 4 --directions 2 --output-dir run --num-threads 1"
    main(["train", "--model", str(opt_dir), "--train-data", "prompts.jsonl", *words.split()])
    assert "held-out reward" in capsys.readouterr().out
    for without in (["resume", "run"], ["evaluate", "--adapter", "run/adapter"]):
        with pytest.raises(SystemExit) as ended:
            main(without)
        assert ended.value.code == 2
        assert "name it again" in capsys.readouterr().err
    main(["resume", "run", "--reward", "my.py:score"])
    main(["evaluate", "--adapter", "run/adapter", "--eval-data", "prompts.jsonl", "--reward", "my.py:score"])
    assert "reward" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise KeyError('unit')", "raised KeyError: 'unit'"),
        ("return [1.0]", "returned 1 value for"),
        ("return [float('nan')] * len(completions)", r"no number \(NaN\)"),
        ("return ['good'] * len(completions)", "returned 'good', which is neither a number nor None"),
        ("while True: pass", "no answer"),
    ],
)
def test_a_bad_reward_ends_the_run_with_the_record_and_keeps_the_steps_before(opt_dir, tmp_path, body, message):
    path = tmp_path / "my.py"
    path.write_text(f"calls = []\ndef score(completions, **rest):\n    calls.append(1)\n    if len(calls) < 4:\n"
                    f"        return [len(text) for text in completions]\n    {body}\n")  # fmt: skip
    with pytest.raises(RewardError, match=message) as ended:
        mezo_finetune(
            str(opt_dir), PROMPTS, reward_funcs=f"{path}:score", output_dir=str(tmp_path / "run"),
            **SETTINGS | {"reward_timeout_s": 2.0},
        )  # fmt: skip
    assert "The run is kept up to step 2" in str(ended.value)
    assert len(read_journal(tmp_path / "run" / "journal.jsonl")[1]) == 2


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_writes_goes_on_as_if_it_had_not_been(train, opt_dir, tmp_path):
    file = tmp_path / "my.py"
    file.write_text("def score(completions, **rest):\n    return [len(text) for text in completions]\n")
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in PROMPTS))
    flags = "--max-new-tokens 24 --temperature 1 --num-threads 1 --directions 2 --lr-scheduler-type constant"
    words = ["train", "--model", str(opt_dir), "--train-data", str(data), "--reward", f"{file}:score", *flags.split()]
    command = [str(Path(sys.executable).parent / "zotune"), *words, "--num-steps", "300"]
    process = subprocess.Popen(
        [*command, "--output-dir", str(tmp_path / "killed")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    journal, deadline = tmp_path / "killed" / "journal.jsonl", time.monotonic() + 120
    while not (journal.is_file() and journal.read_bytes().count(b"\n") > 4) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    steps = len(read_journal(journal)[1])
    assert 4 <= steps < 300
    config = tmp_path / "killed" / "config.toml"
    config.write_text(config.read_text().replace("num_steps = 300", f"num_steps = {steps + 2}"))
    resume(tmp_path / "killed", reward_funcs=f"{file}:score")
    main([*words, "--num-steps", str(steps + 2), "--output-dir", str(tmp_path / "whole")])
    entries = [read_journal(tmp_path / name / "journal.jsonl")[1] for name in ("killed", "whole")]
    assert entries[0] == entries[1]


# ---- accuracy ------------------------------------------------------------------------------------------------------


def test_accuracy_is_an_objective_of_scores(opt_dir, reviews_file, tmp_path):
    settings: dict[str, Any] = {
        "labels": ("terrible", "great"), "invocation": " It was", "num_steps": 3, "eval_steps": 3, "directions": 2,
        "num_threads": 1,
    }  # fmt: skip
    runs = [
        mezo_finetune(str(opt_dir), str(reviews_file), output_dir=str(tmp_path / name), **settings, **named)
        for name, named in (("a", {"objective": "accuracy"}), ("b", {"reward": ["accuracy"]}))
    ]
    assert runs[0].final is not None
    assert runs[0].final.accuracy is not None
    assert runs[0].final.loss == pytest.approx(1 - runs[0].final.accuracy)
    journals = [(run.run_folder / "journal.jsonl").read_text().splitlines()[1:] for run in runs]
    assert journals[0] == journals[1]


# ---- data ----------------------------------------------------------------------------------------------------------


def test_chats_become_prompts_in_the_words_of_the_template_and_the_answers_start_is_the_invocation(chat_dir):
    tokenizer = load_tokenizer(str(chat_dir))
    records = [Record({"prompt": CHAT, "n": 1}, "a:1"), Record({"prompt": [CHAT[1]], "n": 2}, "a:2")]
    task = choose_task(None, sample=records[0].fields, for_reward=True)
    task, texts = in_words(task, to_texts(records, task, {}), tokenizer)
    assert task.invocation == "<assistant>"
    encoder = Encoder(tokenizer, task, 64, activated=True)
    encoded = encoder.encode(texts).examples
    for example, record in zip(encoded, records, strict=True):
        wanted = tokenizer.apply_chat_template(record.fields["prompt"], add_generation_prompt=True, return_dict=False)
        assert example.prompt + example.invocation == encoder.start + tuple(wanted)
        assert list(example.said) == record.fields["prompt"]


def test_an_answer_at_the_end_of_messages_is_no_part_of_the_prompt():
    answered = [*CHAT, {"role": "assistant", "content": "Great."}]
    assert read_messages(Record({"messages": answered}, "a:1"), "messages") == (
        tuple(CHAT), {"completion": "Great.", "messages": answered},
    )  # fmt: skip
    assert read_messages(Record({"prompt": "hello"}, "a:1"), "prompt")[0] == ({"role": "user", "content": "hello"},)


@pytest.mark.parametrize("messages", [[], 3, [{"role": "user"}], ["hello"], [{"role": "assistant", "content": "yes"}]])
def test_what_are_no_messages_is_refused_with_its_place(messages):
    with pytest.raises(InputError, match="a:7: "):
        read_messages(Record({"prompt": messages}, "a:7"), "prompt")


def test_a_run_on_chats_is_activated_and_its_rewards_get_messages(train, chat_dir):
    def polite(prompts, completions, **rest):
        assert all(prompt[-1]["role"] == "user" for prompt in prompts)
        return [len(completion[0]["content"]) for completion in completions]

    data = [{"prompt": [*CHAT[:1], {"role": "user", "content": record["prompt"]}]} for record in PROMPTS]
    result = train(model=chat_dir, data=data, reward=polite, eval_data=data[:3])
    assert 'scope = "activated"' in (result.run_folder / "config.toml").read_text()
    assert (result.run_folder / "start.safetensors").is_file()  # A from what the model itself answers


def test_a_model_without_a_template_has_no_chats(train):
    with pytest.raises(InputError, match="has no chat template"):
        train(data=[{"prompt": CHAT}] * 4, eval_data=None)


# ---- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 1.0}, "--temperature has no effect without --reward"),
        ({"stop_strings": ["."]}, "--stop-strings has no effect without --reward"),
        ({"reward": ["length"], "estimator": "backprop"}, "--estimator backprop: --reward length has no gradient"),
        ({"objective": "accuracy", "estimator": "jvp"}, "--estimator jvp: --objective accuracy has no gradient"),
        ({"reward": ["length", "accuracy"]}, "take one of them"),
        ({"reward": ["accuracy"], "max_new_tokens": 4}, "--max-new-tokens has no effect without --reward"),
        ({"reward": ["length"], "objective": "token_nll"}, "--objective token_nll does not go with --reward length"),
        ({"reward": ["length"], "num_generations": 2, "temperature": 0.0}, "needs --temperature above 0"),
        ({"reward": ["length"], "top_p": 0.9}, "--top-p has no effect without --temperature"),
        ({"reward": ["length"], "top_p": 0.0}, "--top-p must be above 0"),
        ({"reward": ["length"], "num_demonstrations": 2}, "--num-demonstrations does not go with --reward"),
        ({"batches_per_step": 2}, "--batches-per-step has no effect with --estimator one_sided; it is for es"),
        ({"reward": ["length"], "batches_per_step": 4, "directions": 2}, "--directions must be 4 or more"),
        ({"reward": ["length"], "reward_weights": ["a"]}, "reward_weights: expected a list of numbers"),
    ],
)
def test_settings_that_mean_nothing_are_refused_before_anything_is_loaded(settings, message):
    with pytest.raises(InputError, match=message):
        make_config(settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"reward": None, "task": "prompt", "max_new_tokens": None},
            "--reward: task prompt has prompts and nothing to learn",
        ),
        ({"data": [{"sentence": "a"}] * 4, "eval_data": None}, "cannot tell the prompts from the fields sentence"),
        ({"max_new_tokens": 63}, "--max-new-tokens 63 leaves no room for a prompt within 64 tokens"),
        ({"reward": "lenght"}, "do you mean length?"),
        ({"reward": "none.py:score"}, "there is no file none.py"),
        ({"task": "lm"}, "task lm has no prompts"),
    ],
)
def test_what_cannot_be_done_is_refused_before_training(train, tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        train(**settings)
    assert not (tmp_path / "run" / "journal.jsonl").exists()
