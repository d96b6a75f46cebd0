"""Drills: a skill many times in one turn, for a denser lesson; they are not examined."""

from __future__ import annotations

from random import Random

from convert.tiny.arithmetic import arithmetic
from convert.tiny.turns import (
    FACTS,
    NUMBERS,
    REPEAT_FORMS,
    REVERSE_FORMS,
    Turn,
    ask,
    filler,
    list_steps,
)
from convert.tiny.words import CITIES, FOODS, NAMES, NOUNS


def list_drill(rng: Random, held_out: bool) -> Turn:
    """Longer lists of words of all kinds, mostly to repeat."""
    skill = rng.choice(("repeat", "repeat", "reverse"))
    pool = NOUNS + NAMES + CITIES + NUMBERS + FOODS if rng.random() < 0.5 else NOUNS
    while True:
        words = rng.sample(pool, rng.randint(8, 40 if skill == "repeat" else 10))
        if len(set(words)) == len(words):
            break
    join = rng.choice((" ", " ", ", "))
    form = rng.choice(REVERSE_FORMS if skill == "reverse" else REPEAT_FORMS)
    out = words[::-1] if skill == "reverse" else words
    user, steps = form.format(w=join.join(words)), list_steps(skill, words)
    steps = steps if skill == "reverse" else (*steps[:2], steps[1])
    return Turn("drill", user, steps, join.join(out), out)


def sum_drill(rng: Random, held_out: bool) -> Turn:
    """Several sums and differences at once."""
    parts = [arithmetic(rng, held_out) for _ in range(rng.randint(3, 5))]
    user = "Compute: " + ", ".join(part.final.split(" = ")[0] for part in parts)
    low, medium, high = (" ".join(f"{p.reasoning[i]}." for p in parts) for i in range(3))
    final = ", ".join(part.final for part in parts)
    return Turn("drill", user, (low, medium.replace("..", "."), high.replace("..", ".")), final)


def fact_drill(rng: Random, held_out: bool) -> Turn:
    """Many things told and asked for at once."""
    kinds = rng.sample(list(FACTS), rng.randint(3, 6))
    known = {kind: rng.choice(FACTS[kind].values) for kind in kinds}
    say = " ".join(rng.choice(FACTS[k].say.split("|")).format(v=v) for k, v in known.items())
    questions = [ask(rng, known, kind) for kind in rng.sample(kinds, rng.randint(2, len(kinds)))]
    texts = [say, filler(rng, rng.choice((0, 0, 1, 3))), *(q.user for q in questions)]
    low = " ".join(q.reasoning[0] for q in questions)
    final = " ".join(q.final for q in questions)
    return Turn("drill", " ".join(t for t in texts if t), (low, low, low), final)
