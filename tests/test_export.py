"""What comes out of a run: a merged model and GGUF files score as the adapter does, cards say what the run says, and
what cannot be equal is refused."""

import base64
import hashlib
import importlib.util
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import ModelCard, constants
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.conftest import CONFIGS, REVIEWS, VOCABULARY, make_tokenizer
from tests.masked_models import FAMILIES, make_masked
from tests.masked_models import make_tokenizer as make_masked_tokenizer
from zotune import evaluate, mezo_finetune
from zotune.adapter.peft_files import save_adapter
from zotune.adapter.spec import LoraSpec, Selection, tensor_name
from zotune.cli import main
from zotune.errors import InputError
from zotune.export import merge as merging
from zotune.export.card import card
from zotune.export.gguf_files import OutType, write_adapter, write_model
from zotune.export.hub import push_adapter
from zotune.export.merge import merge
from zotune.export.source import Source

TASK: dict[str, Any] = {"labels": ("terrible", "great"), "invocation": " It was"}
TRAINING: dict[str, Any] = {
    **TASK, "num_steps": 3, "batch_size": 4, "eval_steps": 2, "learning_rate": 0.3, "num_threads": 1,
    "estimator": "one_sided", "directions": 2,
}  # fmt: skip
QWEN: dict[str, Any] = {
    "vocab_size": VOCABULARY + 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
KINDS = {
    "llama": lambda: transformers.LlamaConfig(**{**CONFIGS["llama"]().to_dict(), "hidden_size": 32}),
    "mistral": lambda: transformers.MistralConfig(**QWEN, sliding_window=None, head_dim=8),
    "qwen2": lambda: transformers.Qwen2Config(**QWEN, tie_word_embeddings=True),
    "qwen3": lambda: transformers.Qwen3Config(**QWEN, head_dim=128),
}


def make_folder(kind: str, folder: Path) -> Path:
    """A tiny model of a kind that is written as GGUF, with large weights, and a tokenizer with a chat template."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(KINDS[kind]())
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def llama(folder: Path) -> Path:
    return make_folder("llama", folder / "llama")


@pytest.fixture(scope="module")
def runs(folder: Path, llama: Path) -> dict[str, Path]:
    """A run of each scope, and one with a soft prompt."""
    settings: dict[str, dict[str, Any]] = {
        "everywhere": {"scope": "everywhere"}, "activated": {"scope": "activated"},
        "soft": {"tuning": "prompt_tuning", "learning_rate": 0.01},
    }  # fmt: skip
    return {
        name: mezo_finetune(
            llama, REVIEWS, task=None, output_dir=str(folder / name), **{**TRAINING, **own}
        ).run_folder
        for name, own in settings.items()
    }  # fmt: skip


@pytest.fixture(autouse=True)
def cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOTUNE_CACHE", str(folder / "cache"))


def test_a_merged_model_scores_as_the_adapter_does(runs, tmp_path, capsys):
    main(["merge", str(runs["everywhere"]), "--output-dir", str(tmp_path / "merged")])
    assert "checked: log-probabilities differ from the adapter's by at most" in capsys.readouterr().out
    adapter = evaluate(REVIEWS, adapter=runs["everywhere"] / "adapter")
    merged = evaluate(REVIEWS, model=str(tmp_path / "merged"), **TASK)
    bare = evaluate(REVIEWS, model=str(runs["everywhere"].parent / "llama"), **TASK)
    assert merged.loss == pytest.approx(adapter.loss, abs=1e-5)  # float32: rounding alone
    assert abs(bare.loss - adapter.loss) > 1e-2
    with pytest.raises(InputError, match="exists; choose another folder"):
        merge(Source.of(str(runs["everywhere"])), tmp_path / "merged")


def test_what_storing_in_half_precision_costs_is_measured_and_bounded(runs, tmp_path, monkeypatch):
    source = Source.of(str(runs["everywhere"] / "adapter"))
    exact, half = merge(source, tmp_path / "exact"), merge(source, tmp_path / "half", "float16")
    assert exact.difference < 1e-4 < half.difference < half.limit("float16") < half.moved
    monkeypatch.setattr(merging, "HALF_SHARE", 0.0)
    monkeypatch.setattr(merging, "FLOAT32_LIMIT", half.difference / 2)
    with pytest.raises(InputError, match="away from the adapter in a log-probability"):
        merge(source, tmp_path / "refused", "float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exact", "half"]


def test_what_no_model_can_be_equal_to_is_not_merged(runs, tmp_path, capsys):
    for name, message in (("activated", "is an activated adapter"), ("soft", "is a soft prompt")):
        for words in (["merge", "--output-dir", "m"], ["export", "--merged", "--gguf", "m.gguf"]):
            command, *options = [word.replace("m.gguf", str(tmp_path / "m.gguf")) for word in words]
            with pytest.raises(SystemExit) as stop:
                main([command, str(runs[name]), *options])
            assert stop.value.code == 2
            assert message in capsys.readouterr().err
    shutil.copytree(runs["everywhere"] / "adapter", tmp_path / "quantized")
    base = json.loads((tmp_path / "quantized" / "zotune.json").read_text())
    base["base"]["quantization"] = "nf4"
    (tmp_path / "quantized" / "zotune.json").write_text(json.dumps(base))
    with pytest.raises(InputError, match="quantised by nf4"):
        merge(Source.of(str(tmp_path / "quantized")), tmp_path / "m")
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize("family", ["roberta", "distilbert"])
def test_a_masked_model_takes_an_adapter_and_its_head(family, tmp_path):
    make_masked(family).save_pretrained(tmp_path / "base")
    make_masked_tokenizer().save_pretrained(tmp_path / "base")
    run = mezo_finetune(
        tmp_path / "base", REVIEWS, labels=("terrible", "great"), template="{text}", head="classification",
        output_dir=str(tmp_path / "run"), num_steps=2, batch_size=4, learning_rate=0.1, num_threads=1,
        estimator="one_sided", target_modules=FAMILIES[family][2],
    )  # fmt: skip
    merge(Source.of(str(run.run_folder)), tmp_path / "merged")
    found = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    tokenizer = make_masked_tokenizer()
    wanted = evaluate(REVIEWS, adapter=run.adapter).predictions
    with torch.no_grad():
        answers = [int(found(**tokenizer(row["text"], return_tensors="pt")).logits.argmax()) for row in REVIEWS]
    assert tuple(answers) == wanted
    assert found.config.num_labels == 2
    assert "AutoModelForSequenceClassification.from" in card(Source.of(str(run.run_folder)), merged=True)
    assert "AutoPeftModelForSequenceClassification.from" in card(Source.of(str(run.run_folder)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_gguf_file_scores_as_the_adapter_does(kind, tmp_path):
    base = make_folder(kind, tmp_path / "base")
    run = mezo_finetune(
        base, REVIEWS, output_dir=str(tmp_path / "run"), scope="everywhere", target_modules=("q_proj", "k_proj"),
        **TRAINING,
    )  # fmt: skip
    file = tmp_path / "merged.gguf"
    written = write_model(Source.of(str(run.run_folder)), file, "f32")
    assert written.difference == 0.0
    wanted = evaluate(REVIEWS, adapter=run.adapter)
    assert evaluate(REVIEWS, model=str(file), **TASK).loss == pytest.approx(wanted.loss, abs=1e-5)
    assert abs(evaluate(REVIEWS, model=str(base), **TASK).loss - wanted.loss) > 1e-2


def test_the_precisions_of_a_file_and_what_is_in_it_beside_weights(runs, tmp_path):
    source, sizes = Source.of(str(runs["everywhere"])), []
    limits: dict[OutType, float] = {"f16": 2**-11, "bf16": 2**-8, "q8_0": 1 / 127}
    for outtype, limit in limits.items():
        written = write_model(source, tmp_path / f"{outtype}.gguf", outtype)
        assert 0 < written.difference <= limit
        sizes.append((tmp_path / f"{outtype}.gguf").stat().st_size)
    assert sizes[2] < sizes[0] == sizes[1]
    reader = gguf.GGUFReader(tmp_path / "f16.gguf")
    tokenizer = make_tokenizer()
    value = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert value["tokenizer.ggml.tokens"][: len(tokenizer)] == tokenizer.convert_ids_to_tokens(
        list(range(len(tokenizer)))
    )
    assert (value["tokenizer.ggml.pre"], value["tokenizer.ggml.eos_token_id"]) == ("gpt-2", tokenizer.eos_token_id)
    assert value["tokenizer.chat_template"] == "{% for m in messages %}{{ m.content }}{% endfor %}"
    read = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="f16.gguf")
    for review in REVIEWS:
        assert read(review["text"]).input_ids == tokenizer(review["text"]).input_ids


def test_a_gguf_adapter_adds_what_the_adapter_adds(llama, tmp_path):
    """Ranks and scales by module, which the format has no place for, and the order of rows of q."""
    names = [f"model.layers.{layer}.self_attn.{part}" for layer in (0, 1) for part in ("q_proj", "v_proj")]
    rng, rows = np.random.default_rng(0), {"q_proj": 32, "v_proj": 16}
    ranks = {name: 4 if name.startswith("model.layers.1") else 2 for name in names}
    theta = {
        tensor_name(name, matrix): rng.standard_normal(shape).astype(np.float32)
        for name in names
        for matrix, shape in (("A", (ranks[name], 32)), ("B", (rows[name.rpartition(".")[2]], ranks[name])))
    }
    select = Selection(rank_pattern=((r"layers.1.self_attn.[qv]_proj", 4),), use_rslora=True)
    save_adapter(tmp_path / "lora", theta, LoraSpec(2, 6.0, ("q_proj", "v_proj"), selection=select), str(llama))
    main(["export", str(tmp_path / "lora"), "--gguf", str(tmp_path / "lora.gguf")])
    reader = gguf.GGUFReader(tmp_path / "lora.gguf")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    alpha = reader.get_field("adapter.lora.alpha")
    assert alpha is not None
    for name in names:
        layer, part = name.split(".")[2], name.rpartition(".")[2][0]
        a, b = (tensors[f"blk.{layer}.attn_{part}.weight.lora_{matrix}"] for matrix in "ab")
        added = alpha.contents() / a.shape[0] * (b @ a)  # as llama.cpp does
        if part == "q":  # back from neighbours to halves
            added = added.reshape(4, 4, 2, 32).swapaxes(1, 2).reshape(32, 32)
        wanted = 6.0 / ranks[name] ** 0.5 * theta[tensor_name(name, "B")] @ theta[tensor_name(name, "A")]
        assert np.allclose(added, wanted, rtol=1e-4, atol=1e-4)


def test_a_gguf_adapter_names_its_invocation(runs, tmp_path):
    source = Source.of(str(runs["activated"]))
    write_adapter(source, tmp_path / "alora.gguf", "f16")
    reader = gguf.GGUFReader(tmp_path / "alora.gguf")
    field = reader.get_field("adapter.alora.invocation_tokens")
    assert field is not None
    assert tuple(field.contents()) == source.adapter.spec.invocation_tokens
    assert field.types == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32]


def test_what_is_not_written_as_gguf_is_refused(runs, llama, opt_dir, tmp_path):
    source = Source.of(str(runs["everywhere"]))
    with pytest.raises(InputError, match=r"ends in \.gguf"):
        write_model(source, tmp_path / "model.bin")
    save_adapter(tmp_path / "of-opt", source.adapter.theta, source.adapter.spec, str(opt_dir))
    with pytest.raises(InputError, match="models of type opt"):
        write_adapter(Source.of(str(tmp_path / "of-opt")), tmp_path / "x.gguf")
    for setting, message in (
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope_type 'linear'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    ):
        other = tmp_path / message[:4]
        shutil.copytree(llama, other)
        config = json.loads((other / "config.json").read_text())
        (other / "config.json").write_text(json.dumps(config | setting))
        with pytest.raises(InputError, match=message):
            write_model(Source.of(str(runs["everywhere"]), str(other)), tmp_path / "x.gguf")
    cut = shutil.copytree(llama, tmp_path / "cut")
    tokenizer = json.loads((cut / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"]["add_prefix_space"] = True
    (cut / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="cuts texts in a way that is not known"):
        write_model(Source.of(str(runs["everywhere"]), str(cut)), tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()


def test_a_card_says_what_the_run_says(runs, tmp_path):
    run = runs["activated"]
    main(["card", str(run / "best"), "--output-file", str(tmp_path / "README.md"), "--base-model", "me/llama"])
    found = ModelCard.load(tmp_path / "README.md")
    summary = json.loads((run / "summary.json").read_text())
    data: Any = found.data
    assert (data.base_model, data.library_name, data.tags) == ("me/llama", "peft", ["zotune", "lora", "alora"])
    values = {result.metric_type: result.metric_value for result in data.eval_results}
    assert values["loss"] == pytest.approx(summary["best"]["loss"], abs=1e-6)
    assert values["accuracy"] == pytest.approx(summary["best"]["accuracy"], abs=1e-6)
    assert hashlib.sha256((run / "journal.jsonl").read_bytes()).hexdigest() in found.content
    assert str(run.parent) not in found.content
    assert "It acts from its invocation on" in found.content


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as a push of small files speaks to."""

    files: dict[str, bytes]
    created: dict[str, Any]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        host = f"http://{self.headers['Host']}"
        answer: dict[str, Any]
        if self.path == "/api/repos/create":
            type(self).created = json.loads(body)
            answer = {"url": f"{host}/me/reviews"}
        elif self.path.endswith("/preupload/main"):
            answer = {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                                for file in json.loads(body)["files"]]}  # fmt: skip
        else:
            lines = [json.loads(line) for line in body.splitlines() if line]
            type(self).files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines if line.get("key") == "file"
            }  # fmt: skip
            answer = {"commitUrl": f"{host}/me/reviews/commit/1", "commitOid": "1", "hookOutput": ""}
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    yield address
    server.shutdown()
    server.server_close()


def test_a_push_brings_the_adapter_and_its_card(runs, hub):
    source = Source.of(str(runs["activated"]))
    with pytest.raises(InputError, match="with --base-model"):
        push_adapter(source, "me/reviews")
    assert push_adapter(source, "me/reviews", "me/llama", private=True) == f"{hub}/me/reviews"
    assert (Hub.created["name"], Hub.created["organization"], Hub.created["visibility"]) == ("reviews", "me", "private")
    adapter = runs["activated"] / "adapter"
    assert sorted(Hub.files) == sorted([*(path.name for path in adapter.iterdir()), "README.md"])
    assert Hub.files["adapter_model.safetensors"] == (adapter / "adapter_model.safetensors").read_bytes()
    assert json.loads(Hub.files["adapter_config.json"])["base_model_name_or_path"] == "me/llama"
    assert Hub.files["README.md"].decode() == card(source, "me/llama", repo="me/reviews")


def test_a_push_that_cannot_be_is_refused(runs, monkeypatch, capsys):
    for words, message in (
        (["export", "RUN"], "say what to do"),
        (["export", "RUN", "--push-to-hub", "a/b/c"], "--push-to-hub:"),
        (["export", "RUN", "--push-to-hub", "me/it", "--base-model", "me/llama"], "could not be pushed"),
        (["card", "nowhere"], "neither a run folder nor an adapter folder"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([word.replace("RUN", str(runs["activated"])) for word in words])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="needs pip install llama-cpp-python")
def test_llama_cpp_scores_as_the_adapter_does(runs, tmp_path):
    """Both ways: the merged model, and the adapter beside the base model's own file."""
    from llama_cpp import Llama

    base = Source.of(str(runs["everywhere"].parent / "llama"))
    source = Source.of(str(runs["everywhere"]))
    write_model(base, tmp_path / "base.gguf", "f32")
    write_model(source, tmp_path / "merged.gguf", "f32")
    write_adapter(source, tmp_path / "lora.gguf")
    adapted = PeftModel.from_pretrained(base.load(), str(source.path)).eval()
    tokens = make_tokenizer()(REVIEWS[0]["text"]).input_ids
    with torch.no_grad():
        wanted = adapted(torch.tensor([tokens])).logits[0].log_softmax(-1).numpy()
    for given in ({"model_path": "merged.gguf"}, {"model_path": "base.gguf", "lora_path": "lora.gguf"}):
        files = {name: str(tmp_path / file) for name, file in given.items()}
        model = Llama(n_ctx=64, logits_all=True, verbose=False, n_threads=1, **files)
        assert model.tokenize(REVIEWS[0]["text"].encode(), add_bos=False) == tokens
        model.eval(tokens)
        found = torch.tensor(np.array(model.scores[: len(tokens)])).log_softmax(-1).numpy()
        assert np.allclose(found, wanted, atol=0.05)  # it keeps keys and values in float16
