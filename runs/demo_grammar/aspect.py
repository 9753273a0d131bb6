"""What a demo review can judge of a film, in praise and in complaint."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Aspect:
    """One thing a review can judge. Index 0 holds complaints, index 1 praise; {a|b} is a choice."""

    clauses: tuple[list[str], list[str]]
    """Independent clauses, fit to follow `although` or `but`."""

    things: tuple[list[str], list[str]]
    """Noun phrases, fit to follow `despite`."""
