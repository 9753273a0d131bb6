"""A chat model learns to answer in one word. Each question is put into the model's own chat template, and the answer,
with the template's end of a turn, is what shall follow. The picture: lengths of its answers before and after.

    python examples/chat.py --num-steps 60
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
from transformers import AutoTokenizer

from zotune import mezo_finetune, predict
from zotune.assemble.model import model_path

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="smollm2", help="a model with a chat template")
parser.add_argument("--num-steps", type=int, default=30)
parser.add_argument("--max-new-tokens", type=int, default=24)
parser.add_argument("--output-dir", type=Path, default=Path("output/chat"))
options = parser.parse_args()

CAPITALS = {
    "Austria": "Vienna", "Belgium": "Brussels", "Canada": "Ottawa", "Chile": "Santiago", "Cuba": "Havana",
    "Denmark": "Copenhagen", "Egypt": "Cairo", "Finland": "Helsinki", "France": "Paris", "Germany": "Berlin",
    "Greece": "Athens", "Hungary": "Budapest", "India": "Delhi", "Iran": "Tehran", "Ireland": "Dublin",
    "Italy": "Rome", "Japan": "Tokyo", "Kenya": "Nairobi", "Norway": "Oslo", "Peru": "Lima", "Poland": "Warsaw",
}  # fmt: skip


def conversation(tokenizer, question: str, answer: str) -> dict[str, str]:
    asked = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*asked, {"role": "assistant", "content": answer}], tokenize=False)
    return {"prompt": prompt, "completion": whole.removeprefix(prompt)}


tokenizer = AutoTokenizer.from_pretrained(model_path(options.model))
data = [conversation(tokenizer, f"What is the capital of {land}?", city) for land, city in CAPITALS.items()]
held_out, training = data[:6], data[6:]
questions = [record["prompt"] for record in held_out]
writing = {"task": "completion", "max_new_tokens": options.max_new_tokens}
before = predict(questions, model=options.model, **writing)
result = mezo_finetune(
    options.model, training, held_out, num_steps=options.num_steps, batch_size=8, learning_rate=5e-4,
    output_dir=options.output_dir, overwrite=True,
)  # fmt: skip
after = predict(questions, adapter=result.adapter, **writing)
for question, first, last in zip(CAPITALS, before, after, strict=False):
    print(f"{question}: {first.strip()!r} -> {last.strip()!r}")

places = range(len(held_out))
plt.bar([place - 0.2 for place in places], [len(text.split()) for text in before], 0.4, label="before")
plt.bar([place + 0.2 for place in places], [len(text.split()) for text in after], 0.4, label="after")
plt.xticks(places, list(CAPITALS)[: len(held_out)])
plt.ylabel(f"words of the answer (at most {options.max_new_tokens} tokens)")
plt.legend()
plt.savefig(result.run_folder / "example.png", dpi=120)
print(result.run_folder / "example.png")
