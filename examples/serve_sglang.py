"""An activated adapter on a server of SGLang, asked about a document that the base model has read already. Picture: the
seconds of each request. Needs zotune[sglang]:    python examples/serve_sglang.py
"""

import argparse
import json
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from zotune import mezo_finetune

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="smollm2")
parser.add_argument("--num-steps", type=int, default=5)
parser.add_argument("--port", type=int, default=30000)
parser.add_argument("--output-dir", type=Path, default=Path("output/serving"))
options = parser.parse_args()
SERVER = f"http://127.0.0.1:{options.port}"


def ask(text: str, adapter: str | None) -> tuple[float, int]:
    """Seconds, and how many tokens were kept from earlier requests."""
    body = {"text": text, "lora_path": adapter, "sampling_params": {"max_new_tokens": 1, "temperature": 0}}
    request = urllib.request.Request(f"{SERVER}/generate", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    began = time.perf_counter()
    with urllib.request.urlopen(request, timeout=600) as answer:
        return time.perf_counter() - began, json.load(answer)["meta_info"]["cached_tokens"]


run = mezo_finetune(options.model, task="demo", num_steps=options.num_steps, output_dir=options.output_dir)
base = json.loads((run.adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
command = [sys.executable, "-m", "sglang.launch_server", "--model-path", base, f"--port={options.port}"]
command += ["--enable-lora", "--max-total-tokens=16384", "--lora-paths", f"reviews={run.adapter}"]
if not torch.cuda.is_available():
    command += ["--device", "cpu", "--attention-backend", "torch_native", "--lora-backend", "torch_native"]
    command += ["--sampling-backend", "pytorch", "--grammar-backend", "none", "--disable-cuda-graph"]
server = subprocess.Popen(command)
try:
    while server.poll() is None:  # until it answers
        with suppress(OSError), urllib.request.urlopen(f"{SERVER}/health", timeout=5):
            break
        time.sleep(1)
    document = "The film follows a family through one long summer by the sea. " * 30
    found = {"base model": ask(document, None), "adapter": ask(document + " It was", "reviews")}
finally:
    server.terminate()
    server.wait(60)
for name, (seconds, kept) in found.items():
    print(f"{name}: {seconds:.2f} s, {kept} tokens kept from earlier requests")
plt.bar(list(found), [seconds for seconds, _ in found.values()])
plt.ylabel("seconds of the request")
plt.savefig(run.run_folder / "example.png", dpi=120)
