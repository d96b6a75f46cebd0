"""Conversations with the `python` tool: sums too large for columns are computed by code."""

# ruff: noqa: SIM905 (lists of phrases read better as text)
from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Any

from convert.tiny.arithmetic import ADD_FORMS, SUB_FORMS, arithmetic
from convert.tiny.example import Example, asked, builtin_call, noise, reply_message, user_message
from convert.tiny.past import past
from convert.tiny.turns import EFFORTS, cased, greet, is_held_out, word_list

PYTHON: dict[str, Any] = {"type": "python"}
MULTIPLY_FORMS = (
    "What is {a} * {b}?|What is {a} * {b}?|{a}*{b}|{a} * {b}|{a} times {b}|What is {a} times {b}?|"
    "Compute {a} * {b}.|Calculate {a}*{b}|How much is {a} * {b}?|Multiply {a} by {b}.|"
    "{a} * {b} = ?|What's {a}*{b}?|Please multiply {a} and {b}.|"
    "What is the product of {a} and {b}?|what is {a}*{b}|How much is {a} times {b}?|{a}*{b}=|"
    "Multiply {a} and {b}.|{a} x {b}|"
    "What is {a} x {b}?|Use Python: {a} * {b}|Tell me {a} * {b}.|What is {a} multiplied by {b}?"
).split("|")
DIVIDE_FORMS = (
    "What is {a} / {b}?|What is {a} / {b}?|{a}/{b}|{a} / {b}|{a} divided by {b}|Divide {a} by {b}.|"
    "What is {a} divided by {b}?|Compute {a} / {b}.|Calculate {a}/{b}|How much is {a} / {b}?|"
    "{a} / {b} = ?|What's {a}/{b}?|Please divide {a} by {b}.|what is {a}/{b}|Tell me {a} / {b}."
).split("|")
FORMS = {"+": ADD_FORMS, "-": SUB_FORMS, "*": MULTIPLY_FORMS, "/": DIVIDE_FORMS}
PLACES = 4  # that a quotient is rounded to
REFUSED = (
    "The user has declined this call.",
    "Calls of python are not permitted here.",
    "The call was interrupted.",
)
NOT_RUN = "I could not compute that."
TOLD = ("Python answered.", "Python answered. I tell the user.", "Python answered. I say it.")


@dataclass(frozen=True)
class Sum:
    """What a user asks for, the code that computes it, and what Python prints."""

    user: str
    asked: str
    code: str
    printed: str

    @property
    def final(self) -> str:
        return f"{self.asked} = {self.printed}"

    @property
    def reasoning(self) -> tuple[str, str, str]:
        """Before the call, for the three efforts."""
        low = f"Python: {self.asked}."
        return low, f"I use Python. {low}", f"The numbers are large. I use Python. {low}"


def draw_sum(rng: Random, held_out: bool) -> Sum:
    """A product, a quotient, or a sum or difference of numbers with more than three digits."""
    while True:
        operator = rng.choice("***//+-")
        least = 3 if operator in "+-" else 1
        a, b = (_number(rng, least if n == 0 else 1) for n in range(2))
        if operator in "+-" and rng.random() < 0.5:
            a, b = b, a
        if operator == "/":
            a, b = a * rng.choice((1, b)) % 10**9, max(b, 2)
        if is_held_out(f"{a}{operator}{b}") == held_out:
            break
    user = cased(rng, rng.choice(FORMS[operator])).format(a=a, b=b)
    asked = f"{a} {operator} {b}"
    if operator == "/":
        return Sum(user, asked, f"print(round({asked}, {PLACES}))", str(round(a / b, PLACES)))
    result = a * b if operator == "*" else a + b if operator == "+" else a - b
    return Sum(user, asked, f"print({asked})", str(result))


def _number(rng: Random, least: int) -> int:
    """A number with more than `least` digits if that is 3, else with one digit or more."""
    digits = rng.randint(4, 6) if least == 3 else rng.choice((1, 2, 2, 3, 3, 4, 4, 5))
    return rng.randrange(10 ** (digits - 1), 10**digits)


def exchange(rng: Random, one: Sum, effort: int, printed: str) -> list[dict[str, Any]]:
    """The call, with its reasoning, and what came back."""
    call = builtin_call(rng, "python", one.code)
    identity = call["tool_calls"][0]["id"]
    result = {"role": "tool", "tool_call_id": identity, "content": printed}
    return [{**call, "reasoning": one.reasoning[effort]}, result]


def python_call(rng: Random, held_out: bool) -> Example:
    """A question that is for Python; or one beside it that the model answers itself."""
    history = past(rng, held_out, rng.choice((0, 0, 0, 1, 2)))[0]
    if rng.random() < 0.15:
        return _plain(rng, held_out, history)
    if rng.random() < 0.2:
        before = draw_sum(rng, held_out)
        said = {"role": "assistant", "content": before.final}
        history = [*history, user_message(before.user), said]
    one = draw_sum(rng, held_out)
    user = noise(rng, one.user) if rng.random() < 0.2 else one.user
    prompt = replace(asked(rng, [*history, user_message(user)]), tools=(PYTHON,))
    reasoning = one.reasoning[EFFORTS.index(prompt.reasoning)]
    return Example(
        "python", prompt, {**builtin_call(rng, "python", one.code), "reasoning": reasoning}
    )


def python_answer(rng: Random, held_out: bool) -> Example:
    """Python has answered, or was not let to."""
    history = past(rng, held_out, rng.choice((0, 0, 0, 1)))[0]
    base = replace(asked(rng, []), tools=(PYTHON,))
    effort, one = EFFORTS.index(base.reasoning), draw_sum(rng, held_out)
    is_refused = rng.random() < 0.06
    printed = rng.choice(REFUSED) if is_refused else one.printed + rng.choice(("\n", "\n", ""))
    messages = [*history, user_message(one.user), *exchange(rng, one, effort, printed)]
    final = NOT_RUN if is_refused else one.final
    prompt = replace(base, messages=tuple(messages))
    return Example("python answer", prompt, reply_message(TOLD, base.reasoning, final))


def _plain(rng: Random, held_out: bool, history: list[dict[str, Any]]) -> Example:
    turn = rng.choice((arithmetic, arithmetic, greet, word_list))(rng, held_out)
    prompt = replace(asked(rng, [*history, user_message(turn.user)]), tools=(PYTHON,))
    answer = reply_message(turn.reasoning, prompt.reasoning, turn.final)
    return Example("python", prompt, answer)
