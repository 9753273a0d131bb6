"""Three tasks whose answers a function can check, for training on rewards: prompts and reward functions.

    python runs/reward_tasks.py FOLDER      # json-train.jsonl, json-test.jsonl, and so on for bullets and addition

A file's records have a `prompt`, a list of messages as TRL's trainers take it, and columns for the rewards. They are
drawn by a seeded generator from the words below; no prompt is in both files of a task. The functions have TRL's
signature, so `runs/reward_tasks.py:json_reward` is a reward for zotune, and the same function is one for TRL's
GRPOTrainer (runs/grpo.py). They need nothing but the standard library.

The wording is chosen for SmolLM2-135M-Instruct: what it writes without training is sometimes right, and seldom.
`python runs/grpo.py --task json --seconds 0` measures how often.
"""

import argparse
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NUM_TRAIN, NUM_TEST = 500, 200

# What the prompts are drawn from.
WORDS = {
    name: tuple(line.split(", "))
    for name, line in {
        "first name": "Maria, Tom, Aisha, Peter, Greta, Ivan, Elif, Bruno, Anna, Kofi, Mei, Carlos, Ingrid, Omar, "
        "Lucy, Rajesh, Sofia, Henry, Yuki, Nadia, Felix, Clara, Diego, Hannah, Ali, Emma, Viktor, Leila, Oscar, Rosa",
        "last name": "Lopez, Baker, Khan, Holm, Petrov, Silva, Rossi, Mensah, Chen, Vega, Berg, Farouk, Hill, Patel, "
        "Costa, Young, Sato, Novak, Weber, Stone",
        "city": "Lisbon, Oslo, Rome, Paris, Cairo, Lima, Dublin, Prague, Vienna, Boston, Delhi, Kyoto, Accra, Athens, "
        "Quito, Berlin, Madrid, Warsaw",
        "goods": "blue lamp, wooden chair, tent, jar of honey, winter coat, bicycle, teapot, pair of boots, guitar, "
        "notebook, desk fan, silver ring, rain jacket, chess set, garden hose, mirror, backpack, camera, rug",
        "event": "jazz festival, book fair, flower market, marathon, film night, science day, cooking class, "
        "boat race, town meeting, chess tournament, art show, bread festival, school concert, dance evening",
        "month": "January, February, March, April, May, June, July, August, September, October, November, December",
        "kind": "fruits, vegetables, tools, drinks, sports, birds, flowers, games, toys, songs, films, books, cakes, "
        "soups, gifts, jobs, hobbies, cities, rivers, islands, museums, machines, insects, trees, shoes, hats, "
        "instruments, desserts, spices, sandwiches, vehicles, buildings, materials, metals, stones, fabrics, dances, "
        "festivals, holidays, snacks, breakfasts, salads, pets, fish, dogs, colours, inventions, sauces, animals",
        "trait": "popular, cheap, expensive, rare, famous, old, modern, small, large, simple, unusual, beautiful, "
        "strange, useful, good, well-known",
    }.items()
}
# An example of the form, with another number of points.
ONE_BULLET = (
    {"role": "user", "content": "Write exactly one bullet point: a day."},
    {"role": "assistant", "content": "- Monday"},
)


def text_of(completion: Any) -> str:
    """What was written, without the space around it: of a text, or of a list of messages as chat data have it."""
    text: str = completion if isinstance(completion, str) else completion[-1]["content"]
    return text.strip()


def json_reward(completions: Sequence[Any], keys: Sequence[Sequence[str]], **_: Any) -> list[float]:
    """1 where the whole completion is a JSON object with exactly these keys, each once, else 0."""
    return [
        float(_keys_of(text_of(completion)) == sorted(wanted))
        for completion, wanted in zip(completions, keys, strict=True)
    ]


def json_shaped_reward(completions: Sequence[Any], keys: Sequence[Sequence[str]], **_: Any) -> list[float]:
    """The same, and 0.5 where more than the object is written, 0.25 for an object with other keys."""
    found = []
    for completion, wanted in zip(completions, keys, strict=True):
        text = text_of(completion)
        inner = _keys_of(text[text.find("{") : text.rfind("}") + 1])
        known = 0.0 if inner is None else 0.5 if inner == sorted(wanted) else 0.25
        found.append(1.0 if _keys_of(text) == sorted(wanted) else known)
    return found


def bullets_reward(completions: Sequence[Any], **_: Any) -> list[float]:
    """1 where the completion is three bullet points, all different, and nothing else, else 0."""
    return [float(_is_three_bullets(text_of(completion))) for completion in completions]


def addition_reward(completions: Sequence[Any], answer: Sequence[int], **_: Any) -> list[float]:
    """1 where the last number of the completion is the sum, else 0."""
    return [
        float(re.findall(r"\d+", text_of(completion))[-1:] == [str(right)])
        for completion, right in zip(completions, answer, strict=True)
    ]


def _keys_of(text: str) -> list[str] | None:
    """The keys of the JSON object that a text is, sorted; None where it is none."""
    try:
        # A list of pairs is no other JSON, and keeps a key that stands there twice.
        pairs = json.loads(text, object_pairs_hook=tuple)
    except (ValueError, RecursionError):
        return None
    return sorted(key for key, _ in pairs) if isinstance(pairs, tuple) else None


def _is_three_bullets(text: str) -> bool:
    points = [re.fullmatch(r"\s*[-*•]\s+(\S.*)", line) for line in text.splitlines() if line.strip()]
    return len(points) == 3 and len({point and point[1].strip() for point in points} - {None}) == 3


def _json_record(draw: random.Random) -> dict[str, Any]:
    name = f"{draw.choice(WORDS['first name'])} {draw.choice(WORDS['last name'])}"
    city, other = draw.sample(WORDS["city"], 2)
    goods, event, month = draw.choice(WORDS["goods"]), draw.choice(WORDS["event"]), draw.choice(WORDS["month"])
    small, large = draw.randint(1, 28), draw.randint(18, 90)
    first, second, sentence = draw.choice(
        (
            ("name", "age", f"{name} is {large} years old."),
            ("name", "age", f"{name} from {city} turned {large} last week."),
            ("name", "city", f"{name} lives in {city}."),
            ("name", "city", f"After {small} years in {other}, {name} moved to {city}."),
            ("product", "price", f"The {goods} costs {large} dollars."),
            ("product", "price", f"We sold a {goods} for {large} euros."),
            ("event", "date", f"The {event} takes place on {small} {month}."),
            ("event", "city", f"On {small} {month} there is a {event} in {city}."),
            ("origin", "destination", f"The train from {city} to {other} takes {small} hours."),
            ("city", "temperature", f"It was {small} degrees in {city} this morning."),
        )
    )
    text = f'{sentence}\n\nReturn JSON: {{"{first}": ..., "{second}": ...}}'
    return {"prompt": [_user(text)], "keys": [first, second]}


def _bullets_record(draw: random.Random) -> dict[str, Any]:
    wanted = f"three {draw.choice(WORDS['trait'])} {draw.choice(WORDS['kind'])}"
    return {"prompt": [*ONE_BULLET, _user(f"Write exactly three bullet points: {wanted}.")]}


def _addition_record(draw: random.Random) -> dict[str, Any]:
    first, second = sorted((draw.randint(10, 99), draw.randint(10, 99)))  # no sum in both orders
    return {"prompt": [_user(f"What is {first} + {second}? Keep it short.")], "answer": first + second}


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@dataclass(frozen=True)
class Task:
    """How a prompt is drawn, what judges its completions, and how many tokens those may have."""

    draw: Callable[[random.Random], dict[str, Any]]
    reward: Callable[..., list[float]]
    max_new_tokens: int


TASKS = {
    "json": Task(_json_record, json_reward, 40),
    "bullets": Task(_bullets_record, bullets_reward, 40),
    "addition": Task(_addition_record, addition_reward, 16),
}


def records(name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The records of a task for training, and those held out."""
    drawn = _different(TASKS[name].draw, random.Random(name))
    return [next(drawn) for _ in range(NUM_TRAIN)], [next(drawn) for _ in range(NUM_TEST)]


def _different(draw: Callable[[random.Random], dict[str, Any]], generator: random.Random) -> Iterator[dict[str, Any]]:
    seen = set()
    while True:
        record = draw(generator)
        if (text := record["prompt"][-1]["content"]) not in seen:
            seen.add(text)
            yield record


def write(folder: Path) -> None:
    """The files of all tasks."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in TASKS:
        for part, rows in zip(("train", "test"), records(name), strict=True):
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{name}-{part}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)
