"""A from the data: against a plain decomposition of what transformers' own forward pass puts into each module."""

import json
import textwrap
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from tests.conftest import TARGETS, VOCABULARY, make_model
from tests.processes import run_to_end
from zotune import mezo_finetune, replay_run, resume
from zotune.adapter.forms import initial_theta
from zotune.adapter.peft_files import load_adapter
from zotune.adapter.spec import LoraSpec, tensor_name
from zotune.adapter.start import START_FILE, Start
from zotune.engine.torch import eva
from zotune.engine.torch.eva import principal_components
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.prefix_cache import PrefixCache
from zotune.engine.torch.targets import resolve_targets
from zotune.errors import InputError
from zotune.run.trainer import Callback
from zotune.zo.protocol import AT_THETA, Example

INVOCATION = (50, 51)
SCOPES = {"activated": INVOCATION, "everywhere": None}
tokens = st.integers(2, VOCABULARY - 1)
examples = st.builds(
    lambda prompt, candidates: Example(tuple(prompt), INVOCATION, tuple(map(tuple, candidates)), 0),
    st.lists(tokens, min_size=1, max_size=12),
    st.lists(st.lists(tokens, min_size=1, max_size=3), min_size=1, max_size=3),
)


def inputs_of_modules(model, targets, batch, scope) -> dict[str, np.ndarray]:
    """[tokens, inputs] of each module, a candidate without its last token at a time, no padding, no cache. In scope
    activated, a token that several candidates of an example share is one."""
    found: dict[str, list[torch.Tensor]] = {}
    hooks = []
    for name, module in resolve_targets(model, LoraSpec(4, 8.0, targets))[1].items():
        rows = found.setdefault(name, [])
        hooks.append(
            module.register_forward_pre_hook(
                lambda _, args, rows=rows: rows.append(args[0].reshape(-1, args[0].shape[-1]))
            )
        )
    kept = []
    for example in batch:
        seen = set()
        for start in dict.fromkeys(candidate[:-1] for candidate in example.candidates):
            whole = example.prompt + example.invocation + start
            with torch.no_grad():
                model(torch.tensor([whole]))
            first = len(example.prompt) if scope == "activated" else 0
            own = [n for n in range(first, len(whole)) if scope != "activated" or whole[: n + 1] not in seen]
            seen |= {whole[: n + 1] for n in own}
            kept.append(own)
    for hook in hooks:
        hook.remove()
    return {
        name: torch.cat([row[own] for row, own in zip(rows, kept, strict=True)]).numpy() for name, rows in found.items()
    }


def start_of(model, spec: LoraSpec, batch: list[Example], seed: int = 0) -> Start:
    engine = TorchEngine(model, spec, PrefixCache(1e9, 8))
    try:
        return principal_components(engine, batch, seed)
    finally:
        engine.close()


def explained(inputs: np.ndarray, rows: np.ndarray) -> float:
    """The share of the inputs' variance that `rows`, orthonormal, keep."""
    centred = inputs - inputs.mean(axis=0, dtype=np.float64)
    return float((np.square(centred @ rows.T)).sum() / max(np.square(centred).sum(), 1e-30))


@settings(max_examples=10)
@given(batch=st.lists(examples, min_size=4, max_size=20), rank=st.integers(1, 6))
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.slow
def test_rows_explain_as_much_as_the_best_of_their_number(kind, scope, batch, rank):
    model = make_model(kind)
    with patch.object(eva, "MAX_TOKENS", 10**6):
        spec = LoraSpec(rank, 8.0, TARGETS[kind], SCOPES[scope])
        start = principal_components(TorchEngine(model, spec, PrefixCache(1e9, 8)), batch, seed=0, batch_size=7)
    for name, inputs in inputs_of_modules(make_model(kind), TARGETS[kind], batch, scope).items():
        rows = start.tensors[tensor_name(name, "A")].astype(np.float64)
        _, sizes, best = np.linalg.svd(inputs - inputs.mean(axis=0, dtype=np.float64))
        if np.sum(sizes > 1e-4 * max(sizes[0], 1e-3)) < rank:  # few tokens differ: OPT's layer 0 may see one alone
            continue
        best = best[:rank]
        np.testing.assert_allclose(rows @ rows.T, np.eye(rank), atol=1e-5)
        assert explained(inputs, rows) == pytest.approx(explained(inputs, best), abs=1e-4)


def test_the_model_is_left_as_it_was_and_the_same_data_give_the_same_bits():
    model, spec = make_model("opt"), LoraSpec(4, 8.0, ("q_proj", "fc1"), INVOCATION)
    batch = [Example((1, i, i + 1, i + 2), INVOCATION, ((60,), (61,)), 0) for i in range(2, 20)]
    ids = torch.tensor([[1, 5, 9]])
    before = model(ids).logits
    assert start_of(model, spec, batch) == start_of(model, spec, batch)
    assert torch.equal(model(ids).logits, before)
    assert start_of(model, spec, batch[:9]) != start_of(model, spec, batch)


def test_some_tokens_of_each_pass_stand_for_all():
    model, spec = make_model("llama"), LoraSpec(4, 8.0, TARGETS["llama"], None)
    rng = np.random.default_rng(0)
    batch = [Example(tuple(rng.integers(2, 300, 30).tolist()), (), ((7,), (8,)), 0) for _ in range(500)]
    start = start_of(model, spec, batch)
    taken = batch[:: len(batch) // eva.NUM_EXAMPLES][: eva.NUM_EXAMPLES]
    for name, inputs in inputs_of_modules(make_model("llama"), TARGETS["llama"], taken, "everywhere").items():
        best = np.linalg.svd(inputs - inputs.mean(axis=0), full_matrices=False)[2][:4]
        assert explained(inputs, start.tensors[tensor_name(name, "A")]) > 0.95 * explained(inputs, best)


def test_prompts_are_kept_for_the_training_that_follows():
    engine = TorchEngine(make_model("opt"), LoraSpec(4, 8.0, ("q_proj",), INVOCATION), PrefixCache(1e9, 8))
    batch = [Example((1, i, i + 1, i + 2), INVOCATION, ((60,), (61,)), 0) for i in range(2, 20)]
    principal_components(engine, batch, 0)
    before = engine.stats.tokens_computed
    engine.score(initial_theta(engine.tensor_shapes, 0), [AT_THETA], batch)
    assert engine.stats.tokens_computed == before + len(batch) * len(INVOCATION)


def test_rows_beyond_the_data_are_drawn():
    model, spec = make_model("opt"), LoraSpec(6, 8.0, ("q_proj",), INVOCATION)
    batch = [Example((1, 9), INVOCATION, ((60,),), 0)]  # two tokens: one component
    drawn = initial_theta({"base_model.model.model.decoder.layers.1.self_attn.q_proj.lora_A.weight": (6, 16)}, 3)
    start = start_of(model, spec, batch, seed=3)
    for name, value in drawn.items():
        assert np.array_equal(start.tensors[name][1:], value[1:])
        assert np.linalg.norm(start.tensors[name][0]) == pytest.approx(1.0, abs=1e-5)
    wide = start_of(model, LoraSpec(20, 8.0, ("q_proj",), None), [batch[0]] * 40, seed=3)
    assert {value.shape for value in wide.tensors.values()} == {(20, 16)}  # a rank above the 16 inputs


def test_inputs_that_are_not_finite_are_refused():
    model = make_model("opt")
    with torch.no_grad():
        model.model.decoder.layers[0].fc2.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"the inputs of .*layers.1.*q_proj are no numbers"):
        start_of(model, LoraSpec(2, 8.0, ("q_proj",), None), [Example((1, 9), (), ((7,),), 0)])


# ---- in a run --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def options(opt_dir, reviews_file):
    return {
        "model": str(opt_dir), "train_data": str(reviews_file), "labels": ("terrible", "great"),
        "invocation": " It was", "num_steps": 6, "batch_size": 3, "directions": 2, "num_threads": 1, "lora_rank": 2,
    }  # fmt: skip


class StopAt3(Callback):
    def on_step_end(self, event) -> None:
        if event.step == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("tuning", ["lora", "lora_fa"])
@pytest.mark.slow
def test_a_run_keeps_its_start_and_resumes_from_it(options, tmp_path, tuning):
    whole, run = tmp_path / "whole", tmp_path / "run"
    mezo_finetune(**options, tuning=tuning, output_dir=str(whole))
    with pytest.raises(KeyboardInterrupt):
        mezo_finetune(**options, tuning=tuning, output_dir=str(run), callbacks=[StopAt3()])
    digest = json.loads((run / "journal.jsonl").read_bytes().split(b"\n", 1)[0])["lora"]["start"]
    start = Start.read(run, digest)
    resume(run)
    adapter, _ = load_adapter(run / "adapter")
    for name, value in start.tensors.items():
        assert np.array_equal(adapter[name], value) == (tuning == "lora_fa")
    for name in ("journal.jsonl", START_FILE, "adapter/adapter_model.safetensors"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    replay_run(run, tmp_path / "first", step=0)
    first, _ = load_adapter(tmp_path / "first")
    for name, value in start.tensors.items():
        assert np.array_equal(first[name], value)
        assert not first[name.replace("lora_A", "lora_B")].any()


@pytest.mark.parametrize("scope", SCOPES)
def test_both_engines_start_alike(options, tmp_path, scope):
    starts = []
    for engine in ("torch", "plain"):
        run = tmp_path / engine
        own = {"num_steps": 1, "scope": scope, "init_lora_weights": "eva", "engine": engine}
        mezo_finetune(**{**options, **own}, output_dir=str(run))
        starts.append(load_file(run / START_FILE))
    for name, rows in starts[0].items():
        np.testing.assert_allclose(np.abs(rows @ starts[1][name].T), np.eye(len(rows)), atol=1e-3)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), f"cannot read {START_FILE}, which the run began with"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"), f"{START_FILE} has changed since the run began"),
    ],
)
def test_a_start_that_is_gone_or_changed_is_refused(options, tmp_path, damage, message):
    run = tmp_path / "run"
    mezo_finetune(**{**options, "num_steps": 2}, output_dir=str(run))
    damage(run / START_FILE)
    for use in (lambda: replay_run(run, tmp_path / "out"), lambda: resume(run)):
        with pytest.raises(InputError, match=message):
            use()


@pytest.mark.slow
def test_a_disk_too_full_for_the_start_is_named(options, tmp_path):
    script = textwrap.dedent(f"""
        import resource, signal, sys
        from zotune import mezo_finetune
        from zotune.errors import InputError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))  # config.toml fits, start.safetensors does not
        try:
            mezo_finetune(**{ {**options, "lora_rank": 16}!r}, output_dir={str(tmp_path / "run")!r})
        except InputError as error:
            sys.exit(str(error))
    """)
    result = run_to_end(code=script)
    assert f"--output-dir: cannot write {tmp_path / 'run'}" in result.stderr
    assert not (tmp_path / "run" / START_FILE).exists()
