"""How much of a chat is computed once: tokens computed and reused while a small model learns conversations.

    PYTHONPATH=. python runs/chat_reuse.py

It writes 64 conversations of four turns about prices, under one system message, and trains the demo's model on the
assistant's turns in both scopes, with the same number of probes. The table goes into docs/chat.md.
"""

import json
import random
import tempfile
from pathlib import Path

from runs.page import put

from zotune import mezo_finetune

PAGE = Path(__file__).parents[1] / "docs" / "chat.md"
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
PRICES = {"pen": "two", "book": "seven", "lamp": "twelve", "cup": "four", "chair": "thirty", "plate": "five"}
SYSTEM = "You are the clerk of a small shop. A guest asks for prices. Answer with the price alone, in words and coins."
NUM_CHATS, NUM_TURNS, NUM_STEPS = 64, 4, 48


def conversation(rng: random.Random) -> dict[str, list[dict[str, str]]]:
    messages = [{"role": "system", "content": SYSTEM}]
    for name in rng.sample(sorted(PRICES), NUM_TURNS):
        asked = rng.choice((f"How much is the {name}?", f"And the {name}, what does it cost?"))
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": f"{PRICES[name]} coins"})
    return {"messages": messages}


def main() -> None:
    rng = random.Random(0)
    lines = ["| scope | tokens computed | tokens reused | share reused |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        template, data = Path(folder) / "chat.jinja", Path(folder) / "chats.jsonl"
        template.write_text(TEMPLATE, encoding="utf-8")
        chats = [conversation(rng) for _ in range(NUM_CHATS)]
        data.write_text("".join(json.dumps(chat) + "\n" for chat in chats), encoding="utf-8")
        for scope in ("activated", "everywhere"):
            found = mezo_finetune(
                "demo", data, data, chat_template=template, scope=scope, estimator="one_sided", directions=4,
                num_steps=NUM_STEPS, eval_steps=NUM_STEPS, max_eval_samples=4, output_dir=f"{folder}/{scope}",
            ).summary  # fmt: skip
            computed, reused = found["tokens_computed"], found["tokens_reused"]
            lines.append(f"| `{scope}` | {computed:,} | {reused:,} | {found['kv_reuse']:.1%} |")
    put(PAGE, "reuse", "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
