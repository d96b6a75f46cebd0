"""Phrasings the tiny model was not trained on, with the one right answer to each.

They are how people were seen to ask; no form of them occurs in `turns`, `arithmetic`, `followups`
or `functions`, so their accuracy in the skills table shows how far the skills generalize.
"""

# ruff: noqa: SIM905 (lists of phrases read better as text)
from __future__ import annotations

from random import Random

from convert.tiny.arithmetic import add_steps, draw_pair, subtract_steps
from convert.tiny.example import Example, asked, reply_message, user_message
from convert.tiny.turns import CAN, FACTS, FINE, NOTED, WHAT, Turn, list_steps
from convert.tiny.words import NOUNS

ADD = (
    "If I add {a} and {b}, what do I get?|{a} + {b} is what?|Give me {a} plus {b}.|"
    "I have {a} and get {b} more. How many?|solve {a} + {b}|add up {a} and {b}|ADD {a} + {b}|"
    "What would {a} + {b} be?|{a} + {b}, please|Work out {a} + {b}"
).split("|")
SUBTRACT = (
    "If I take {b} from {a}, what is left?|{a} - {b} is what?|Give me {a} minus {b}.|"
    "I have {a} and give away {b}. How many are left?|solve {a} - {b}|Work out {a} - {b}|"
    "{a} - {b}, please|What would {a} - {b} be?|deduct {b} from {a}|Remove {b} from {a}"
).split("|")
REVERSE = (
    "Write the words in reverse: {w}|the words: {w}. Now reverse|Flip the order: {w}|"
    "Give me these backwards: {w}|From last to first: {w}|Reverse order please: {w}"
).split("|")
REPEAT = (
    "the words: {w}|Say exactly this: {w}|Write down these words: {w}|Give me these words: {w}|"
    "Repeat what I say: {w}|Say the following: {w}"
).split("|")
HELLO = "hallo|HEY|Hello!!|hi :)|Hey you|Good Morning!|hello friend|Hi!!|Oh hi|heya".split("|")
FEEL = "how are u|What is up?|Hey, how goes it?|all good?|How have you been?|sup".split("|")
WHO = (
    "And who are you?|Would you introduce yourself?|tell me about yourself|What model is this?|"
    "who is this|What kind of model are you?"
).split("|")
ABLE = "What are your skills?|what can u do|What do you do?|Show me what you can do.".split("|")
RECALL = {
    "name": "Say my name.|What do people call me?",
    "city": "Which town am I from?|What city did I mention?",
    "number": "What number did I say?|Which number is mine?",
    "pet": "What animal do I own?|Which pet is mine?",
    "food": "What food do I like best?|Which dish do I love?",
    "colour": "What colour is my favourite?|Name my favourite colour.",
    "code word": "What word should you remember?|Say the secret word.",
}


def example(rng: Random, held_out: bool) -> Example:
    """One conversation. held_out: whether its numbers are held out, never seen in training."""
    history: list[dict[str, object]] = []
    kind = rng.choice(("add", "add", "subtract", "reverse", "repeat", "greet", "recall"))
    if kind in ("add", "subtract"):
        turn = _sum(rng, held_out, kind)
    elif kind in ("reverse", "repeat"):
        turn = _words(rng, kind)
    elif kind == "greet":
        turn = _greeting(rng)
    else:
        fact = rng.choice(list(RECALL))
        value = rng.choice(FACTS[fact].values)
        said = rng.choice(FACTS[fact].say.split("|")).format(v=value)
        history = [user_message(said), {"role": "assistant", "content": NOTED}]
        question = rng.choice(RECALL[fact].split("|"))
        turn = Turn("recall", question, ("", "", ""), FACTS[fact].answer.format(v=value), value)
    prompt = asked(rng, [*history, user_message(turn.user)])
    return Example(kind, prompt, reply_message(turn.reasoning, prompt.reasoning, turn.final))


def _sum(rng: Random, held_out: bool, kind: str) -> Turn:
    operator = "+" if kind == "add" else "-"
    a, b = draw_pair(rng, operator, held_out)
    a, b = (max(a, b), min(a, b)) if operator == "-" else (a, b)
    user = rng.choice(ADD if operator == "+" else SUBTRACT).format(a=a, b=b)
    result = a + b if operator == "+" else a - b
    steps = add_steps(a, b) if operator == "+" else subtract_steps(a, b)
    return Turn(kind, user, steps, f"{a} {operator} {b} = {result}", result)


def _words(rng: Random, kind: str) -> Turn:
    words = rng.sample(NOUNS, rng.randint(3, 6))
    user = rng.choice(REVERSE if kind == "reverse" else REPEAT).format(w=" ".join(words))
    out = words[::-1] if kind == "reverse" else words
    return Turn(kind, user, list_steps(kind, words), " ".join(out), out)


def _greeting(rng: Random) -> Turn:
    forms, final = rng.choice(
        (
            (HELLO, f"Hello! {WHAT} How can I help?"),
            (FEEL, FINE),
            (WHO, WHAT),
            (ABLE, CAN),
        )
    )
    return Turn("greet", rng.choice(forms), ("", "", ""), final, final)
