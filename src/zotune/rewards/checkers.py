"""Checkers of answers that can be verified: the numbers of GSM8K, the equations of countdown, and mathematics at large.

Each says 1 for right and 0 for wrong, of one text. Nothing that a model wrote is ever run: equations are parsed by
`ast` and computed in whole fractions.

References: Cobbe et al., 2021 (arXiv 2110.14168) for GSM8K, whose answers stand behind `####`; Gandhi et al., 2024
(arXiv 2404.03683) for countdown; HuggingFace's package math-verify.
"""

import ast
import logging
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from importlib.util import find_spec

from zotune.errors import InputError
from zotune.rewards.texts import tagged_answer

LONGEST_EQUATION = 200
"""Characters; those of six numbers need less than half of it."""

_WHOLE = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_NUMBER = re.compile(rf"(?:(?<![\w).])-)?\$?(?:{_WHOLE}(?:\.\d+)?|\.\d+)")
_MARKED = re.compile(r"####(.*)")
_SIGNS = str.maketrans({"\N{MINUS SIGN}": "-", "\N{MULTIPLICATION SIGN}": "*", "\N{DIVISION SIGN}": "/"})
_EQUATION = re.compile(r"[\d\s()+*/-]+")


def last_number(text: str) -> Decimal | None:
    """The number behind the first `####` of a text, else its last number: with commas, sign, decimals and dollars."""
    text = text.translate(_SIGNS)
    marked = _MARKED.search(text)
    numbers = _NUMBER.findall(marked[1] if marked else text)
    if not numbers:
        return None
    return Decimal((numbers[0] if marked else numbers[-1]).replace(",", "").replace("$", ""))


def gsm8k(text: str, gold: str) -> float | None:
    """Whether both have the same number; None where the right answer has none."""
    right = last_number(gold)
    return None if right is None else float(last_number(text) == right)


def countdown(text: str, numbers: Sequence[int | str], target: int | str) -> float:
    """Whether a text ends in an equation that gives the target and uses each of the numbers once.

    The equation is what stands in the last `<answer>`, or else in the last line; what follows an equals sign is left
    out. It may have whole numbers, + - * / and parentheses.
    """
    answer = tagged_answer(text)
    if answer is None:
        answer = text.strip().rpartition("\n")[2]
    equation = answer.partition("=")[0].translate(_SIGNS).strip()
    if len(equation) > LONGEST_EQUATION or not _EQUATION.fullmatch(equation):
        return 0.0
    if sorted(map(int, re.findall(r"\d+", equation))) != sorted(map(int, numbers)):
        return 0.0
    try:
        return float(_value(ast.parse(equation, mode="eval").body) == Fraction(target))
    except (SyntaxError, ZeroDivisionError):
        return 0.0


def _value(node: ast.expr) -> Fraction:
    """The exact value of an equation.

    Raises:
        SyntaxError: it has something other than whole numbers, + - * / and parentheses.
        ZeroDivisionError: it divides by 0.
    """
    match node:
        case ast.Constant(value=int(number)):
            return Fraction(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=operator, right=right):
            first, second = _value(left), _value(right)
            match operator:
                case ast.Add():
                    return first + second
                case ast.Sub():
                    return first - second
                case ast.Mult():
                    return first * second
                case ast.Div():
                    return first / second
    raise SyntaxError(f"{type(node).__name__} is no part of an equation")


def math_verifier() -> Callable[[str, str], float | None]:
    """Whether two answers are the same mathematics, in LaTeX or plain; None where the right one cannot be read.

    Raises:
        InputError: the package math-verify is not installed.
    """
    if find_spec("math_verify") is None:
        raise InputError('the reward math_verify needs the package math-verify: pip install "zotune[math]"')
    return _same_mathematics


def _same_mathematics(text: str, gold: str) -> float | None:
    from math_verify import parse, verify  # a second, where it is needed

    for name in ("parser", "grader", "utils"):  # each text that cannot be read would be a line in the log
        logging.getLogger(f"math_verify.{name}").setLevel(logging.CRITICAL)
    right = parse(gold) or parse(f"${gold}$")
    return float(verify(right, parse(text))) if right else None
