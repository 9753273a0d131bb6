"""Activated LoRA adapters served by SGLang are what PEFT says they are, token for token, and leave no trace.

Real servers, started as a user starts them, and PEFT's own greedy generation one prompt at a time as the reference.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tests.conftest import CONTEXT, SHARED, VOCABULARY
from tests.pages import ROOT
from tests.sglang_server import Server, free_port, serve
from zotune import InputError, JobsClient, mezo_finetune
from zotune.engine.sglang.names import VERSIONS, installed_version
from zotune.engine.sglang.plugin.alora import last_occurrence
from zotune.engine.sglang.plugin.segments import InvokedId, Segment, split

pytestmark = pytest.mark.usefixtures("quick_start")
needs_sglang = pytest.mark.skipif(installed_version() not in VERSIONS, reason="SGLang is not installed")

INVOCATION = [7, 8]
NUM_TOKENS = 8
TARGETS = {"opt": ["q_proj", "k_proj", "v_proj", "out_proj"], "llama": ["q_proj", "k_proj", "v_proj", "o_proj"]}
ADAPTERS = {"ordinary": None, "activated": INVOCATION, "other": INVOCATION}
ROOM = (
    "--max-total-tokens",
    "16384",
)  # for every prompt here; otherwise a server fills a share of the memory with zeros
MIX = (None, "ordinary", "activated", "other")  # one request each for every prompt


# ---- pure functions ------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2), max_size=12), st.lists(st.integers(0, 2), min_size=1, max_size=3))
def test_the_invocation_is_the_last_one_as_in_peft(tokens: list[int], invocation: list[int]) -> None:
    from peft.tuners.lora.variants import calculate_alora_offsets

    config = LoraConfig(task_type="CAUSAL_LM", alora_invocation_tokens=invocation)
    configs: Any = {"default": config}
    (offset,) = calculate_alora_offsets(configs, "default", torch.tensor([tokens], dtype=torch.long))
    assert last_occurrence(tokens, invocation) == (None if offset is None else len(tokens) - offset)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=5))
def test_segments_put_every_token_on_its_side_of_the_invocation(rows: list[tuple[int, int, int]]) -> None:
    ids = [InvokedId(f"a{i}", start) for i, (start, _, _) in enumerate(rows)]
    segments = split(ids, [prefix for _, prefix, _ in rows], [length for _, _, length in rows])
    expected = [
        (lora_id if position >= lora_id.start else None, position)
        for lora_id, (_, prefix, length) in zip(ids, rows, strict=True)
        for position in range(prefix, prefix + length)
    ]
    assert [(s.lora_id, s.prefix_len + n) for s in segments for n in range(s.length)] == expected
    again = split(*([getattr(s, name) for s in segments] for name in ("lora_id", "prefix_len", "length")))
    assert again == segments, "splitting what is split changes nothing"


def test_sequences_of_other_adapters_stay_whole() -> None:
    ids = [None, "ordinary", InvokedId("activated", 3)]
    assert split(ids, [0, 0, 0], [5, 5, 5]) == [
        Segment(None, 0, 5),
        Segment("ordinary", 0, 5),
        Segment(None, 0, 3),
        Segment(InvokedId("activated", 3), 3, 2),
    ]


@needs_sglang
def test_every_accepted_lora_backend_applies_adapters_from_the_invocation_on() -> None:
    """The kernels of `triton` and `csgmv`, interpreted; no GPU is needed, and none of its timing is shown."""
    script = Path(__file__).with_name("sglang_lora_backends.py")
    result = subprocess.run([sys.executable, "-W", "ignore", script], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert set(found["differences"]) == {"torch_native", "triton", "csgmv"}
    for difference in found["differences"].values():
        assert difference < 1e-6 * found["largest"], "float32, other orders of summation"


# ---- adapters, prompts and PEFT's answers --------------------------------------------------------------------------


class Case:
    """A model with three adapters of random weights, large enough that no two of them answer alike."""

    def __init__(
        self, kind: str, model: Path, folder: Path, invocation: list[int], vocabulary: int, std: float
    ) -> None:
        self.model, self.invocation, self.vocabulary = model, invocation, vocabulary
        self.adapters = {name: folder / name for name in ADAPTERS}
        self.folder = folder
        for seed, (name, activated_by) in enumerate(ADAPTERS.items()):
            base = AutoModelForCausalLM.from_pretrained(model)
            config = LoraConfig(
                r=4, lora_alpha=8, target_modules=TARGETS[kind], task_type="CAUSAL_LM",
                alora_invocation_tokens=activated_by and invocation,
            )  # fmt: skip
            adapted = get_peft_model(base, config)
            torch.manual_seed(seed)
            with torch.no_grad():
                for parameter_name, parameter in adapted.named_parameters():
                    if "lora_" in parameter_name:
                        parameter.normal_(std=std)
            adapted.save_pretrained(str(self.adapters[name]))
        self._base = AutoModelForCausalLM.from_pretrained(model).eval()
        self._adapted = {
            name: PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), path).eval()
            for name, path in self.adapters.items()
        }
        self._answers: dict[tuple[Any, ...], list[int]] = {}

    def prompts(self, count: int, seed: int = 0, longest: int = 40) -> list[list[int]]:
        """Random prompts: the invocation at the end, further ahead, twice, at the beginning, or nowhere."""
        rng = np.random.default_rng(seed)
        prompts = []
        for index in range(count):
            before, after = rng.integers(2, longest - 8), rng.integers(0, 4)
            text = rng.integers(20, self.vocabulary - 20, size=before + after).tolist()
            ahead, behind = text[:before], text[before:]
            prompt = {
                0: [*ahead, *self.invocation],
                1: [*ahead[: before // 2], *self.invocation, *ahead[before // 2 :], *self.invocation, *behind],
                2: [*ahead, *self.invocation, *behind],
                3: [*self.invocation, *behind] if index % 8 == 3 else [*ahead, self.invocation[0], *behind],
            }[index % 4]
            prompts.append(prompt)
        return prompts

    def start(self, prompt: list[int]) -> int | None:
        return last_occurrence(prompt, self.invocation)

    def answer(self, prompt: list[int], adapter: str | None) -> list[int]:
        key = (*prompt, adapter)
        if key not in self._answers:
            model: Any = self._base if adapter is None else self._adapted[adapter]
            model.generation_config.eos_token_id = None
            ids = torch.tensor([prompt])
            with torch.no_grad():
                output = model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_TOKENS, do_sample=False
                )
            self._answers[key] = output[0, len(prompt) :].tolist()
        return self._answers[key]

    def expected(self, prompts: list[list[int]]) -> list[list[int]]:
        """What `check` compares with: PEFT's answers, computed once."""
        return [self.answer(prompt, adapter) for prompt in prompts for adapter in MIX]

    def check(self, server: Server, prompts: list[list[int]]) -> list[dict[str, Any]]:
        """One batch with every prompt under every adapter and none; each answer is PEFT's."""
        expected = self.expected(prompts)
        requests = [(prompt, adapter) for prompt in prompts for adapter in MIX]
        results = server.generate([prompt for prompt, _ in requests], [adapter for _, adapter in requests])
        assert [result["output_ids"] for result in results] == expected
        return results


@pytest.fixture(scope="module")
def cases(model_dirs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    make: Callable[[str], Case] = lambda kind: Case(  # noqa: E731
        kind, model_dirs[kind], tmp_path_factory.mktemp(kind), INVOCATION, VOCABULARY, std=0.5
    )
    return {kind: make(kind) for kind in TARGETS}


@pytest.fixture(scope="module")
def run(model_dirs: dict[str, Path], reviews_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    mezo_finetune(
        str(model_dirs["opt"]), str(reviews_file), task="demo", scope="activated", num_steps=20, batch_size=4,
        optimizer="sgd", learning_rate=1.0, target_modules=TARGETS["opt"], output_dir=str(folder),
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def opt(cases: dict[str, Case], run: Path) -> Iterator[tuple[Case, Server]]:
    """A server of the case's adapters, and of what a run has exported."""
    case = cases["opt"]
    with serve(case.model, {**case.adapters, "run": run / "adapter"}, case.folder / "log", *ROOM) as server:
        yield case, server


# ---- served answers ------------------------------------------------------------------------------------------------


@needs_sglang
def test_jobs_are_not_there_where_the_operator_did_not_ask(opt: tuple[Case, Server]) -> None:
    with pytest.raises(InputError, match="takes no training jobs"):
        JobsClient(f"http://127.0.0.1:{opt[1].port}").jobs()


@needs_sglang
def test_completions_are_pefts_cold_and_warm_in_one_batch_with_other_requests(opt: tuple[Case, Server]) -> None:
    case, server = opt
    prompts = case.prompts(50)
    answers = {adapter: [case.answer(prompt, adapter) for prompt in prompts] for adapter in MIX}
    assert sum(a != b for a, b in zip(answers["activated"], answers[None], strict=True)) > 30, "the adapter acts"
    assert sum(a != b for a, b in zip(answers["activated"], answers["other"], strict=True)) > 30
    assert sum(len(set(answer)) > 2 for answer in answers["activated"]) > 30, "the answers say something"
    server.flush()
    case.check(server, prompts)
    warm = case.check(server, prompts)
    for index, prompt in enumerate(prompts):
        start = case.start(prompt)
        for name in ("activated", "other"):
            cached = warm[index * len(MIX) + MIX.index(name)]["meta_info"]["cached_tokens"]
            assert cached == (len(prompt) - 1 if start is None else start), "the prompt's KV, up to its invocation"


@needs_sglang
def test_a_prompt_is_computed_once_for_all_activated_adapters_and_plain_requests(opt: tuple[Case, Server]) -> None:
    case, server = opt
    (prompt,) = case.prompts(1, seed=1)
    start = case.start(prompt)
    assert start == len(prompt) - 2
    server.flush()
    cached = [
        server.generate(prompt, adapter)["meta_info"]["cached_tokens"]
        for adapter in ("activated", "other", None, "activated", "ordinary", "ordinary")
    ]
    assert cached == [0, start, start, start, 0, len(prompt) - 1]


@needs_sglang
def test_streamed_tokens_are_the_same(opt: tuple[Case, Server]) -> None:
    case, server = opt
    for prompt in case.prompts(4, seed=2):
        *_, last = server.stream(prompt, "activated")
        assert last["output_ids"] == case.answer(prompt, "activated")


@needs_sglang
def test_a_conversation_is_computed_by_the_base_model_up_to_its_last_invocation(opt: tuple[Case, Server]) -> None:
    case, server = opt
    conversation: list[int] = []
    for turn in range(3):
        question = case.prompts(1, seed=10 + turn, longest=14)[0]
        conversation = conversation + question
        answer = server.generate(conversation, "activated")["output_ids"]
        assert answer == case.answer(conversation, "activated")
        conversation = conversation + answer[:3]
    assert len(conversation) < CONTEXT


@needs_sglang
def test_what_a_run_exports_serves_as_peft(opt: tuple[Case, Server], run: Path) -> None:
    case, server = opt
    base = AutoModelForCausalLM.from_pretrained(case.model)
    adapted: Any = PeftModel.from_pretrained(base, run / "adapter").eval()
    invocation = adapted.peft_config["default"].alora_invocation_tokens
    rng = np.random.default_rng(0)
    prompts = [[*rng.integers(20, VOCABULARY - 20, size=size).tolist(), *invocation] for size in (3, 12, 25)]

    def greedy(prompt: list[int]) -> list[int]:
        ids, more = torch.tensor([prompt]), {"max_new_tokens": NUM_TOKENS, "do_sample": False}
        with torch.no_grad():
            output = adapted.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **more)
        return list(output[0, len(prompt) :].tolist())

    adapted.generation_config.eos_token_id = None
    expected = [greedy(prompt) for prompt in prompts]
    with adapted.disable_adapter():
        assert [greedy(prompt) for prompt in prompts] != expected
    server.flush()
    for _ in range(2):
        results = server.generate(prompts, ["run"] * len(prompts))
        assert [result["output_ids"] for result in results] == expected


@needs_sglang
def test_a_damaged_invocation_is_refused_by_name(opt: tuple[Case, Server], tmp_path: Path) -> None:
    case, server = opt
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes((case.adapters["activated"] / name).read_bytes())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"alora_invocation_tokens": []}))
    result = server.post("/load_lora_adapter", {"lora_name": "damaged", "lora_path": str(tmp_path)})
    assert "its alora_invocation_tokens are []; they must be a list of token ids" in json.dumps(result)


@needs_sglang
def test_plain_requests_see_no_trace_of_an_adapter(opt: tuple[Case, Server]) -> None:
    case, server = opt
    prompts = case.prompts(8, seed=3)
    server.flush()
    server.generate(prompts, ["activated"] * len(prompts))
    longer = [[*prompt, *case.answer(prompt, "activated")] for prompt in prompts]
    after = server.generate(longer, [None] * len(longer), return_logprob=True)
    for prompt, result in zip(prompts, after, strict=True):
        start = case.start(prompt)
        if start is not None:
            assert result["meta_info"]["cached_tokens"] <= start
    with serve(case.model, {}, case.folder / "plain.log", *ROOM) as never_adapted:
        expected = never_adapted.generate(longer, return_logprob=True)
    assert [result["output_ids"] for result in after] == [result["output_ids"] for result in expected]
    logprobs = [
        [value for value, *_ in result["meta_info"]["output_token_logprobs"]]
        for side in (after, expected)
        for result in side
    ]
    # The same float32 operations on batches of other sizes.
    np.testing.assert_allclose(logprobs[: len(longer)], logprobs[len(longer) :], atol=1e-5)


@needs_sglang
def test_two_ranks_chunks_of_a_prompt_and_decoding_beside_them_change_no_token(cases: dict[str, Case]) -> None:
    case = cases["opt"]
    flags = ("--chunked-prefill-size", "16", "--enable-mixed-chunk", *ROOM)
    prompts = case.prompts(50)
    case.expected(prompts)  # before the server takes its share of the cores
    with serve(case.model, case.adapters, case.folder / "tp.log", *flags, num_ranks=2) as server:
        case.check(server, prompts)
        case.check(server, prompts)


@needs_sglang
def test_a_cache_too_small_for_the_prompts_and_pages_of_tokens_change_no_token(cases: dict[str, Case]) -> None:
    case = cases["llama"]
    flags = (
        "--max-total-tokens",
        "160",
        "--chunked-prefill-size",
        "24",
        "--page-size",
        "4",
        "--max-loras-per-batch",
        "2",
    )
    prompts = case.prompts(50)
    case.expected(prompts)
    with serve(case.model, case.adapters, case.folder / "log", *flags) as server:
        case.check(server, prompts)
        case.check(server, prompts)


@needs_sglang
@pytest.mark.skipif(not (SHARED / "models").is_dir(), reason="no trained model at hand")
def test_a_trained_model_serves_as_peft(tmp_path: Path) -> None:
    case = Case("opt", SHARED / "models" / "opt-imdb-4m", tmp_path, [40, 41], 8192, std=0.05)
    prompts = case.prompts(50, longest=120)
    case.expected(prompts)
    with serve(case.model, case.adapters, tmp_path / "log", *ROOM) as server:
        case.check(server, prompts)
        case.check(server, prompts)


@needs_sglang
def test_the_example_trains_serves_and_leaves_a_picture(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "serve_sglang.py"), "--model", "demo", "--num-steps", "2"]
    done = subprocess.run(
        [*command, "--port", str(free_port()), "--output-dir", "made"],
        cwd=tmp_path, env={**os.environ, "MPLBACKEND": "Agg"}, capture_output=True, text=True, timeout=550, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kept = dict(re.findall(r"^(.+): [\d.]+ s, (\d+) tokens kept", done.stdout, re.MULTILINE))
    assert int(kept["base model"]) < 10  # the first token, and what the server warmed up with
    assert int(kept["adapter"]) > 300  # of the document, which the base model has read
    assert (tmp_path / "made" / "example.png").read_bytes().startswith(b"\x89PNG")
