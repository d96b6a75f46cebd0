"""Sums and differences of numbers up to three digits, and the written steps that lead to them."""

# ruff: noqa: SIM905 (lists of phrases read better as text)
from __future__ import annotations

from random import Random

from convert.tiny.turns import Turn, cased, is_held_out

ADD_FORMS = (
    "What is {a} + {b}?|What is {a} + {b}?|{a}+{b}|{a} + {b}|{a} plus {b}|What is {a} plus {b}?|"
    "Compute {a} + {b}.|Calculate {a}+{b}|How much is {a} + {b}?|Add {a} and {b}.|{a} + {b} = ?|"
    "What's {a}+{b}?|Please add {a} and {b}.|What is the sum of {a} and {b}?|what is {a}+{b}|"
    "How much is {a} plus {b}?|{a}+{b}=|Compute {a}+{b}|Can you add {a} and {b}?|Sum {a} and {b}.|"
    "What do {a} and {b} make?|Add {b} to {a}.|The sum of {a} and {b}?|{a} and {b} together?|"
    "Tell me {a} + {b}.|What does {a} + {b} give?|What is the result of {a} + {b}?|{a} +{b}"
).split("|")
SUB_FORMS = (
    "What is {a} - {b}?|What is {a} - {b}?|{a}-{b}|{a} - {b}|{a} minus {b}|What is {a} minus {b}?|"
    "Compute {a} - {b}.|Calculate {a}-{b}|How much is {a} - {b}?|Subtract {b} from {a}.|"
    "{a} - {b} = ?|What's {a}-{b}?|Please subtract {b} from {a}.|what is {a}-{b}|"
    "How much is {a} minus {b}?|{a}-{b}=|Compute {a}-{b}|Can you subtract {b} from {a}?|"
    "Take {b} from {a}.|Tell me {a} - {b}.|What does {a} - {b} give?|{a} less {b}?|"
    "The difference of {a} and {b}?|What is the result of {a} - {b}?|What is {b} less than {a}?"
).split("|")
ADD_MORE = (
    "And {b} more?|Now add {b}.|Add {b} to that.|plus {b}|Plus {b}?|And plus {b}?|"
    "Add another {b}.|Now add {b} to it.|{b} more|And with {b} more?|+ {b}"
).split("|")
TAKE_MORE = (
    "And minus {b}?|Now subtract {b}.|Take {b} from that.|minus {b}|Minus {b}?|"
    "Now take {b} away.|Subtract {b} from it.|And {b} less?|- {b}"
).split("|")
PLACES = ("Ones", "Tens", "Hundreds")


def draw_pair(
    rng: Random, operator: str, held_out: bool, first: int | None = None
) -> tuple[int, int]:
    """Two numbers of one to three digits whose pair (in either order) is held out, or is not."""
    while True:
        a, b = (rng.randrange(rng.choice((10, 100, 100, 100, 1000, 1000))) for _ in "ab")
        a = a if first is None else first
        if is_held_out(f"{min(a, b)}{operator}{max(a, b)}") == held_out:
            return a, b


def digits(number: int, count: int) -> list[int]:
    """The last digits of a number, ones first."""
    return [number // 10**place % 10 for place in range(count)]


def add_steps(a: int, b: int) -> tuple[str, str, str]:
    """Column by column: "Ones: 7+8=15. Tens: 2+5+1=8." for the three efforts."""
    carry, columns = 0, []
    count = max(2, len(str(max(a, b))))
    for x, y in zip(digits(a, count), digits(b, count), strict=True):
        total = x + y + carry
        columns.append(f"{x}+{y}{'+1' if carry else ''}={total}")
        carry = total // 10
    return _steps(f"{a}+{b}", "Add", columns, a + b)


def subtract_steps(a: int, b: int) -> tuple[str, str, str]:
    """Column by column; if the first number is smaller, the two are swapped and the sign put
    before."""
    if a < b:
        low, medium, high = subtract_steps(b, a)
        head = f"{a}<{b}, so -({b}-{a}). "
        return head + low + f", -{b - a}", head + medium, head + high
    borrow, columns = 0, []
    count = max(2, len(str(a)))
    for x, y in zip(digits(a, count), digits(b, count), strict=True):
        short = x - y - borrow < 0
        columns.append(
            f"{x + 10 * short}-{y}{'-1' if borrow else ''}={x + 10 * short - y - borrow}"
        )
        borrow = int(short)
    return _steps(f"{a}-{b}", "Subtract", columns, a - b)


def _steps(asked: str, verb: str, columns: list[str], result: int) -> tuple[str, str, str]:
    low = f"{asked}: {', '.join(columns)}, {result}"
    named = " ".join(f"{place}: {c}." for place, c in zip(PLACES, columns, strict=False))
    medium = f"{verb} {asked}. {named} Result: {result}."
    return low, medium, medium + f" So {asked}={result}."


def arithmetic(
    rng: Random, held_out: bool, operator: str | None = None, first: int | None = None
) -> Turn:
    """A sum or a difference; `first`, the last result, makes it a question that builds on it."""
    operator = operator or rng.choice("+-")
    a, b = draw_pair(rng, operator, held_out, first)
    if first is None and operator == "-" and a < b and rng.random() < 0.5:
        a, b = b, a
    forms = (ADD_FORMS, SUB_FORMS) if first is None else (ADD_MORE, TAKE_MORE)
    user = cased(rng, rng.choice(forms[operator == "-"])).format(a=a, b=b)
    result = a + b if operator == "+" else a - b
    steps = add_steps(a, b) if operator == "+" else subtract_steps(a, b)
    skill = "add" if operator == "+" else "subtract"
    return Turn(skill, user, steps, f"{a} {operator} {b} = {result}", result)
