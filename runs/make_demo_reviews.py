"""Write the demo data: short film reviews from a grammar, 400 to train on and 600 held out.

Every phrase in `demo_grammar/` was written for this; nothing is copied from a corpus or a film. A review is a frame
(concession, contrast, sarcasm, ...) whose slots are filled from word lists. Most frames serve praise and
complaint alike, and words of either kind occur under both labels, so no single word gives the label away: the
script checks that on the held-out file, and that no sentence occurs twice. It makes a demonstration, not a
benchmark: a good accuracy here says nothing about real reviews.

    python runs/make_demo_reviews.py
"""

import argparse
import json
import random
import re
from collections import Counter
from pathlib import Path

from demo_grammar.craft import CRAFT
from demo_grammar.frames import AFTERMATHS, OWN_FRAMES, SHARED_FRAMES, WEIGHTS
from demo_grammar.story import STORY
from demo_grammar.words import ADJECTIVES, NEUTRAL, VERDICTS

SEED = 20
NUM_TRAIN = 400
NUM_EVAL = 600
WORD_LIMITS = (12, 45)
MAX_SINGLE_WORD_ACCURACY = 0.65
DEMO_FOLDER = Path(__file__).parents[1] / "src" / "zotune" / "demo"

ORDER = (
    "acting", "script", "plot", "camera", "music", "ending", "direction", "dialogue", "pacing", "jokes", "effects",
    "characters", "romance", "sets", "editing",
)  # fmt: skip
ASPECTS = [(STORY | CRAFT)[name] for name in ORDER]  # shuffled by the seed, so another order makes other reviews


def choose_inline(text: str, rng: random.Random) -> str:
    """Resolve every {a|b|c}, innermost first."""
    while "{" in text:
        text = re.sub(r"\{([^{}]*)\}", lambda match: rng.choice(match.group(1).split("|")), text)
    return text


def fill(frame: str, label: int, rng: random.Random) -> str:
    """Fill a frame's slots. Nothing is used twice, aspects included, so no review contradicts itself."""
    sides = {"same": label, "other": 1 - label}
    aspects = list(ASPECTS)
    rng.shuffle(aspects)
    genre = rng.choice(NEUTRAL["genre"])
    used: set[str] = set()

    def pick(options: list[str]) -> str:
        choice = rng.choice([option for option in options if option not in used])
        used.add(choice)
        return choice

    def fill_slot(match: re.Match[str]) -> str:
        slot, _, kind = match.group(1).partition(" ")
        if slot == "genre":
            return genre
        if slot == "verdict":
            return pick(VERDICTS[label])
        if slot == "aftermath":
            return pick(AFTERMATHS[label])
        if slot not in sides:
            return pick(NEUTRAL[slot])
        if kind == "adjective":
            return pick(ADJECTIVES[sides[slot]])
        aspect = aspects.pop()
        return rng.choice((aspect.things if kind == "thing" else aspect.clauses)[sides[slot]])

    text = frame
    while "<" in text:
        text = re.sub(r"<([^<>]*)>", fill_slot, text)
    return choose_inline(text, rng)


def polish(text: str) -> str:
    """Capital letters after full stops, and `an` before a vowel."""
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
    return re.sub(r"(?:^|(?<=[.?!] ))[a-z]", lambda match: match.group().upper(), text)


def split_sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.?!]) ", text)


def draw_reviews(label: int, count: int, rng: random.Random, seen: set[str]) -> list[str]:
    """`count` reviews none of whose sentences is in `seen`, which grows."""
    kinds, weights = list(WEIGHTS), list(WEIGHTS.values())
    reviews: list[str] = []
    while len(reviews) < count:
        kind = rng.choices(kinds, weights)[0]
        frames = SHARED_FRAMES[kind] if kind in SHARED_FRAMES else OWN_FRAMES[kind][label]
        text = polish(fill(rng.choice(frames), label, rng))
        sentences = split_sentences(text)
        if not WORD_LIMITS[0] <= len(text.split()) <= WORD_LIMITS[1] or not seen.isdisjoint(sentences):
            continue
        seen.update(sentences)
        reviews.append(text)
    return reviews


def make_splits() -> tuple[list[dict], list[dict]]:
    """Balanced train and held-out rows, drawn together so that both have the same mix."""
    rng = random.Random(SEED)
    seen: set[str] = set()
    train: list[dict] = []
    held_out: list[dict] = []
    for label in (0, 1):
        texts = draw_reviews(label, (NUM_TRAIN + NUM_EVAL) // 2, rng, seen)
        rng.shuffle(texts)
        rows = [{"text": text, "label": label} for text in texts]
        train += rows[: NUM_TRAIN // 2]
        held_out += rows[NUM_TRAIN // 2 :]
    rng.shuffle(train)
    rng.shuffle(held_out)
    return train, held_out


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", text.lower()))


def best_single_word(rows: list[dict]) -> tuple[str, float]:
    """The word whose presence, or absence, best predicts the label of `rows`, with its accuracy on them."""
    counts = (Counter[str](), Counter[str]())
    for row in rows:
        counts[row["label"]].update(words_of(row["text"]))
    gaps = {word: abs(counts[1][word] - counts[0][word]) for word in counts[0] | counts[1]}
    word = max(sorted(gaps), key=gaps.__getitem__)
    # On balanced rows, predicting one label where the word occurs gains half of its count gap over chance.
    return word, 0.5 + gaps[word] / len(rows)


def check(train: list[dict], held_out: list[dict]) -> None:
    """Print what the files hold, and stop if one of the promises of this file's first paragraph is broken."""
    for name, rows in (("train", train), ("eval", held_out)):
        lengths = [len(row["text"].split()) for row in rows]
        positives = sum(row["label"] for row in rows)
        print(f"{name}: {len(rows)} rows, {positives} positive, {min(lengths)}-{max(lengths)} words")
        if 2 * positives != len(rows):
            raise ValueError(f"{name} is not balanced: {positives} of {len(rows)} rows are positive")
    sentences = Counter(sentence for row in train + held_out for sentence in split_sentences(row["text"]))
    print(f"sentences: {sum(sentences.values())}, of which {len(sentences)} different")
    if max(sentences.values()) > 1:
        raise ValueError(f"a sentence occurs twice: {sentences.most_common(1)[0][0]!r}")
    word, accuracy = best_single_word(held_out)
    print(f"best single word on eval: {word!r}, accuracy {accuracy:.1%}, allowed {MAX_SINGLE_WORD_ACCURACY:.0%}")
    if accuracy > MAX_SINGLE_WORD_ACCURACY:
        raise ValueError(f"the word {word!r} alone predicts {accuracy:.1%} of the eval labels")


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output-dir", type=Path, default=DEMO_FOLDER)
    output_dir: Path = parser.parse_args().output_dir
    train, held_out = make_splits()
    check(train, held_out)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_rows(output_dir / "train.jsonl", train)
    write_rows(output_dir / "eval.jsonl", held_out)


if __name__ == "__main__":
    main()
