"""Records of some data sets as the fields that the template of their task speaks of.

A record may become several, as a passage with questions, or none. Both shapes are read in which SuperGLUE is found: its
own nested files, and the flat records of the hub. What each task does to a text is what MeZO does (Malladi et al.,
2023). A record that has another shape is passed on as it is: reading its fields then says what is missing.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Fields = Mapping[str, Any]
Rows = Callable[[Fields], Iterator[Fields]]
"""From a record's fields to those of the records that it becomes; a ValueError says what is wrong with them."""

PLACEHOLDER = "@placeholder"
_CONNECTIVES = {"cause": "because", "effect": "so"}


def boolq(fields: Fields) -> Iterator[Fields]:
    """The question with a capital and a question mark. `google/boolq` calls the label `answer`."""
    question = fields.get("question")
    changed: dict[str, Any] = {}
    if isinstance(question, str) and question.strip():
        text = question.strip()
        changed["question"] = text[0].upper() + text[1:] + ("" if text.endswith("?") else "?")
    if "label" not in fields and "answer" in fields:
        changed["label"] = fields["answer"]
    yield {**fields, **changed}


def copa(fields: Fields) -> Iterator[Fields]:
    """The premise without its full stop, `connective` (because, so), and the choices going on in lower case."""
    changed = dict(fields)
    kind = changed.pop("question", None)
    if kind is not None:
        if kind not in _CONNECTIVES:
            raise ValueError(f"field 'question' should be cause or effect, got {kind!r}")
        changed["connective"] = _CONNECTIVES[kind]
    if isinstance(premise := fields.get("premise"), str):
        changed["premise"] = premise.strip().removesuffix(".")
    for name in ("choice1", "choice2"):
        if isinstance(choice := fields.get(name), str):
            first, space, rest = choice.strip().partition(" ")
            changed[name] = (first if first == "I" else first.lower()) + space + rest
    yield changed


def wsc(fields: Fields) -> Iterator[Fields]:
    """Both spans beside the text, the pronoun in lower case."""
    target = fields.get("target")
    changed = {**fields, **(target if isinstance(target, Mapping) else {})}
    if isinstance(target, Mapping):
        del changed["target"]
    if isinstance(pronoun := changed.get("span2_text"), str):
        changed["span2_text"] = pronoun.lower()
    yield changed


def multirc(fields: Fields) -> Iterator[Fields]:
    """One record for each answer to each question about a passage."""
    passage = fields.get("passage")
    if not isinstance(passage, Mapping):
        yield {name: value for name, value in fields.items() if name != "idx"}
        return
    for question in _mappings(passage, "questions"):
        for answer in _mappings(question, "answers"):
            yield {
                "paragraph": passage.get("text"),
                "question": question.get("question"),
                "answer": answer.get("text"),
                **({"label": answer["label"]} if "label" in answer else {}),
            }


def record(fields: Fields) -> Iterator[Fields]:
    """One record for each query: `choices` are the query with each entity in its gap, `label` has the right ones.

    Highlights are written as points of a list, which the query goes on with.
    """
    passage = fields.get("passage")
    queries: list[Fields] = [fields]
    entities = fields.get("entities")
    if isinstance(passage, Mapping):
        spans = _mappings(passage, "entities")
        text = str(passage.get("text"))
        entities = [text[span["start"] : span["end"] + 1] for span in spans]
        passage, queries = text, _mappings(fields, "qas")
    for query in queries:
        sentence, answers = query.get("query"), query.get("answers")
        if not isinstance(passage, str) or not isinstance(sentence, str) or not isinstance(entities, list):
            raise ValueError("expected the fields passage, query and entities, or passage and qas, of ReCoRD")
        if PLACEHOLDER not in sentence:
            raise ValueError(f"field 'query' has no {PLACEHOLDER}")
        right = [answer["text"] if isinstance(answer, Mapping) else answer for answer in answers or ()]
        yield {
            "passage": passage.replace("@highlight\n", "- "),
            "choices": [sentence.replace(PLACEHOLDER, name) for name in dict.fromkeys(entities)],
            **({} if answers is None else {"label": [sentence.replace(PLACEHOLDER, name) for name in right]}),
        }


def squad(fields: Fields) -> Iterator[Fields]:
    """`answers` is the list of right answers, as texts, and `answer` is its first; DROP calls them answers_spans."""
    found = fields.get("answers", fields.get("answers_spans"))
    if isinstance(found, Mapping):
        found = found.get("text", found.get("spans"))
    if found is None:
        yield fields
        return
    if not isinstance(found, list) or not found or not all(isinstance(text, str) for text in found):
        raise ValueError("field 'answers' should hold a list of texts, one at least")
    changed = {name: value for name, value in fields.items() if name != "answers_spans"}
    yield {**changed, "answers": found, "answer": found[0]}


def preference(fields: Fields) -> Iterator[Fields]:
    """`prompt`, and behind it `chosen` and `rejected`, which may both begin with it; the first is right.

    Where there is no prompt, it is what the two begin with, up to the last word of that.
    """
    prompt, chosen, rejected = (fields.get(name) for name in ("prompt", "chosen", "rejected"))
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        yield fields
        return
    if prompt is None:
        shorter = min(len(chosen), len(rejected))
        same = chosen[: next((i for i in range(shorter) if chosen[i] != rejected[i]), shorter)]
        prompt = same[: max(same.rfind(" "), same.rfind("\n") + 1, 0)]
    if isinstance(prompt, str) and chosen.startswith(prompt) and rejected.startswith(prompt):
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    yield {**fields, "prompt": prompt, "chosen": chosen, "rejected": rejected, "label": "chosen"}


def labelled(fields: Fields) -> Iterator[Fields]:
    """Without the records of SNLI that its annotators did not agree on, whose label is -1."""
    if fields.get("label") != -1:
        yield fields


def _mappings(fields: Fields, name: str) -> list[Fields]:
    values = fields.get(name)
    if not isinstance(values, list) or not all(isinstance(value, Mapping) for value in values):
        raise ValueError(f"field {name!r} should be a list of objects")
    return values
