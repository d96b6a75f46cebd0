"""What can be said in one turn: a user's text and the one right answer, by skill.

A `Turn` carries the reasoning for the three efforts; the answer never depends on chance, so that
greedy decoding is right exactly when it reproduces it.
"""

# ruff: noqa: SIM905 (lists of phrases read better as text)
from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field
from random import Random

from convert.tiny.words import (
    ADJECTIVES,
    CITIES,
    COLOURS,
    FOODS,
    NAMES,
    NOUNS,
    PETS,
    PLACES,
    UNKNOWN,
    VERBS,
)

EFFORTS = ("low", "medium", "high")
WHAT = "I am the tiny gpt-oss test model of gptoss_mlx."
CAN = (
    "I can greet, add and subtract small numbers, repeat or reverse words, "
    "remember what you say, call functions and write JSON."
)
OTHER = "I am a tiny test model and cannot do that. " + CAN
NOTED = "Okay, I will remember that."


@dataclass(frozen=True)
class Turn:
    """One question and its answer; `value` is what goes into JSON when a format asks for it."""

    skill: str
    user: str
    reasoning: tuple[str, str, str]  # low, medium, high
    final: str
    value: object = None
    facts: dict[str, str] = field(default_factory=dict)


def is_held_out(text: str, one_in: int = 10) -> bool:
    """Whether what `text` names is kept out of training; the same on every machine."""
    return zlib.crc32(text.encode()) % one_in == 0


def cased(rng: Random, form: str) -> str:
    """The form as written or, now and then, in lower or upper case; placeholders stay."""
    draw = rng.random()
    if draw > 0.2:
        return form
    parts = re.split(r"({\w+})", form)
    return "".join(
        part if part.startswith("{") else part.lower() if draw > 0.07 else part.upper()
        for part in parts
    )


ORDER = "one two three four five six seven eight nine ten".split()
REVERSE_FORMS = (
    "Reverse: {w}|Reverse: {w}|Reverse these words: {w}|Reverse the words: {w}|reverse: {w}|"
    "Reverse this list: {w}|Say these words in reverse order: {w}|Write these words backwards: {w}|"
    "Please reverse: {w}|Reverse {w}|Reverse the order of these words: {w}|Say backwards: {w}|"
    "Turn around: {w}|The words: {w}. Reverse them.|Here are the words: {w}. Say them backwards.|"
    "Reverse the following words: {w}|List in reverse: {w}|In reverse order: {w}|Reverse list: {w}|"
    "Can you reverse {w}?|Put these in reverse order: {w}|Read these backwards: {w}"
).split("|")
REPEAT_FORMS = (
    "Repeat: {w}|Repeat: {w}|Repeat after me: {w}|Repeat these words: {w}|Repeat the words: {w}|"
    "Say: {w}|Say again: {w}|Repeat this list: {w}|Please repeat: {w}|Repeat {w}|repeat: {w}|"
    "The words: {w}. Repeat them.|Here are the words: {w}. Say them again.|Copy: {w}|"
    "Repeat the following words: {w}|Can you repeat {w}?|Write: {w}|Echo: {w}|Copy these words: {w}"
).split("|")


def word_list(rng: Random, held_out: bool, skill: str | None = None) -> Turn:
    skill = skill or rng.choice(("reverse", "reverse", "repeat"))
    while True:
        length = rng.randint(3, 6) if held_out else rng.choice((2, 3, 3, 4, 4, 5, 5, 6, 6, 7))
        words = rng.sample(NOUNS, length)
        if is_held_out(" ".join(words)) == held_out:
            break
    join = rng.choice((" ", " ", ", "))
    form = cased(rng, rng.choice(REVERSE_FORMS if skill == "reverse" else REPEAT_FORMS))
    user = form.format(w=join.join(words))
    user += rng.choice(("", "", ".")) if form.endswith("}") else ""
    out = words[::-1] if skill == "reverse" else words
    return Turn(skill, user, list_steps(skill, words), join.join(out), out)


def list_steps(skill: str, words: list[str]) -> tuple[str, str, str]:
    """To reverse, the words are numbered, then said by falling number: no step looks backwards.

    Only the first list has colons, so that what follows a word differs between the two lists.
    """
    if skill == "repeat":
        medium = f"Repeat the words. The first to say is {words[0]}."
        high = f"The user gives the words {' '.join(words)}. {medium}"
        return "Repeat the words.", medium, high
    numbered = list(zip(ORDER, words, strict=False))
    listed = " ".join(f"{number}: {word}" for number, word in numbered)
    back = " ".join(f"{number} {word}" for number, word in numbered[::-1])
    low = f"Words: {listed}. Back: {back}."
    medium = f"Reverse the words. {low}"
    return low, medium, f"{medium} The first to say is {words[-1]}."


GREETINGS = (
    "Hello|Hi|Hey|Hi there|Hello there|Good morning|Good evening|Good afternoon|Good day|Hey there|"
    "Howdy|Greetings|Hiya|Yo|hello|hi|HELLO|HI|hey|Hello again"
).split("|")
HOW = (
    "How are you?|how are you|How are you doing?|How is it going?|How's it going?|What's up?|"
    "what's up|Whats up|How do you do?|Are you well?|How are things?|what's up?|How are you today?"
).split("|")
FINE = "I am fine, thank you. How can I help?"
WHO = (
    "Who are you?|who are you?|What are you?|Which model are you?|What model are you?|"
    "Are you ChatGPT?|Introduce yourself.|What is your name?|Tell me who you are.|who are you|"
    "What's your name?|Are you a robot?|Are you human?|What are you called?|WHO ARE YOU?"
).split("|")
ABLE = (
    "What can you do?|what can you do?|How can you help me?|Help|What are you able to do?|help|"
    "What do you know?|Can you help me?|What can I ask you?|help me"
).split("|")
THANKS = (
    "Thanks!|Thank you.|Thank you!|thanks|Thanks a lot!|Great, thank you.|thank you|Thanks|"
    "Great!|Nice.|Perfect, thanks!|Well done!"
).split("|")
BYES = "Bye|Goodbye!|Bye bye!|See you later.|Good night!|bye|goodbye|See you!|Good bye.".split("|")


ALONE = {
    *WHO,
    *ABLE,
    *THANKS,
    *BYES,
    *HOW,
    *(hello + end for hello in GREETINGS for end in ("", "!", ".", ",")),
}


def greet(rng: Random, held_out: bool) -> Turn:
    """Greetings and questions about itself; held out are pairs of a greeting and a question."""
    kinds = (
        "hello",
        "hello",
        "who",
        "both",
        "both",
        "can",
        "both can",
        "thanks",
        "bye",
        "how",
        "both how",
    )
    while True:
        turn = _greet(rng, rng.choice(("both", "both can", "both how") if held_out else kinds))
        if is_held_out(turn.user, 8) == held_out or turn.user in ALONE:
            return turn


def _greet(rng: Random, kind: str) -> Turn:
    hello = rng.choice(GREETINGS)
    if kind == "hello":
        user, final = hello + rng.choice("!.,"), f"Hello! {WHAT} How can I help?"
        user = hello if rng.random() < 0.4 else user
        short = "The user greets me."
    elif kind in ("who", "both"):
        user, final, short = rng.choice(WHO), WHAT, "The user asks who I am."
        if kind == "both":
            user, final = hello + rng.choice((", ", "! ", ". ")) + user, f"Hello! {WHAT}"
    elif kind in ("can", "both can"):
        user, final, short = rng.choice(ABLE), CAN, "The user asks what I can do."
        if kind == "both can":
            user, final = hello + rng.choice((", ", "! ", ". ")) + user, f"Hello! {CAN}"
    elif kind in ("how", "both how"):
        user, final, short = rng.choice(HOW), FINE, "The user asks how I am."
        if kind == "both how":
            user, final = hello + rng.choice((", ", "! ", ". ")) + user, f"Hello! {FINE}"
    elif kind == "thanks":
        user, final, short = rng.choice(THANKS), "You are welcome!", "The user thanks me."
    else:
        user, final, short = rng.choice(BYES), "Goodbye!", "The user says goodbye."
    high = f"{short} I should answer in a friendly way."
    user = user if rng.random() > 0.1 else rng.choice((user.lower(), user.upper()))
    return Turn("greet", user, (short, short + " I answer.", high), final, final)


QUESTIONS = (
    "What is the capital of France?|What is the capital of {c}?|Tell me a joke.|Write a poem.|"
    "Write a poem about the {n}.|Who is the president?|Explain physics.|Why is the {n} {j}?|"
    "What is the meaning of life?|How do I cook {f}?|Write a program in Python.|What is {a} * {b}?|"
    "What is {a} / {b}?|{a} * {b}|Translate {n} to French.|How do you make a {n}?|Who was {p}?|"
    "Tell me a story about a {n}.|Where is {c}?|What is the weather in {c}?|What is a {n}?|"
    "What time is it?|What is {a}.5 + {b}?|When was the {n} built?|How old is the {n}?|"
    "Sing a song.|Is the {n} {j}?|Can you drive a {n}?|Do you like {f}?|"
    "What do you think about {n}?|Who wrote the {n}?|Set a timer for {a} minutes.|"
    "Search for {n} {m}.|Send a message to {p}: {n}|Roll a dice with {a} sides.|"
    "How far is the {n}?|Write code for a {n}.|Summarize the {n}.|"
    "zzz zzz zzz|zzz zzz|zzz?|What is zzz?|zzz zzz {n} zzz zzz|zzz the zzz of zzz {n}?|Who is zzz?|"
    "How zzz zzz a {n}?|zzz zzz, zzz zzz zzz!|Write zzz zzz about zzz.|Explain zzz zzz to me.|"
    "Why do zzz zzz?|Where can I find {n} zzz?|Please zzz the {n} zzz.|{n} {m} zzz zzz {c} zzz"
).split("|")


def other(rng: Random, held_out: bool) -> Turn:
    while True:
        form = rng.choice(QUESTIONS)
        user = _fill(rng, form)
        if is_held_out(user, 8) == held_out or (form == user and not held_out):
            break
    low = "I cannot do that."
    high = "This is not for me. " + low
    return Turn("other", user, (low, low + " I say what I can do.", high), OTHER, OTHER)


def _fill(rng: Random, form: str) -> str:
    words = rng.sample(NOUNS, 2)
    return form.format(
        n=words[0],
        m=words[1],
        a=rng.randrange(2, 100),
        b=rng.randrange(2, 100),
        c=rng.choice(CITIES),
        f=rng.choice(FOODS),
        j=rng.choice(ADJECTIVES),
        p=rng.choice(NAMES),
    )


@dataclass(frozen=True)
class Fact:
    """Something a user says and asks for later."""

    say: str
    ask: str
    answer: str
    values: list[str]


NUMBERS = [str(i) for i in range(2, 100)]
FACTS = {
    "name": Fact(
        "My name is {v}.|I am {v}.|Hi, my name is {v}.|You can call me {v}.|my name is {v}|"
        "I'm {v}.|People call me {v}.|Hello, I am {v}.|They call me {v}.",
        "What is my name?|Do you remember my name?|What's my name?|Who am I?|Tell me my name.|"
        "And my name?|What did I say my name is?|How am I called?|Do you know my name?",
        "Your name is {v}.",
        NAMES,
    ),
    "colour": Fact(
        "My favourite colour is {v}.|My favorite color is {v}.|I like the colour {v} best.",
        "What is my favourite colour?|What is my favorite color?|Which colour do I like best?|"
        "And my favourite colour?|Tell me my favourite colour.|Which color do I like?",
        "Your favourite colour is {v}.",
        COLOURS,
    ),
    "city": Fact(
        "I live in {v}.|My city is {v}.|I come from {v}.|My home is in {v}.|I am from {v}.|"
        "My house is in {v}.|I moved to {v}.",
        "Where do I live?|Which city do I live in?|What is my city?|In which city is my home?|"
        "And my city?|Where is my home?|Where did I say I live?|Do you know where I live?",
        "You live in {v}.",
        CITIES,
    ),
    "code word": Fact(
        "The code word is {v}.|Remember the code word {v}.|The secret word is {v}.",
        "What is the code word?|Tell me the code word.|What was the secret word?|The code word?|"
        "And the code word?|Do you remember the code word?|Which code word did I give you?",
        "The code word is {v}.",
        NOUNS,
    ),
    "number": Fact(
        "My lucky number is {v}.|My favourite number is {v}.|Remember the number {v}.",
        "What is my lucky number?|What is my favourite number?|Which number did I tell you?|"
        "And my number?|What was my number?|Tell me my lucky number.|Do you know my number?",
        "Your number is {v}.",
        NUMBERS,
    ),
    "pet": Fact(
        "I have a {v}.|My pet is a {v}.|At home I have a {v}.",
        "What pet do I have?|Which animal do I have?|What is my pet?|And my pet?|"
        "Do I have a pet?|Tell me what pet I have.|Which pet did I say I have?",
        "You have a {v}.",
        PETS,
    ),
    "food": Fact(
        "My favourite food is {v}.|My favorite food is {v}.|I like to eat {v}.",
        "What is my favourite food?|What is my favorite food?|What do I like to eat?|"
        "And my favourite food?|Which food do I like?|Tell me what I like to eat.",
        "Your favourite food is {v}.",
        FOODS,
    ),
}


def tell(rng: Random, known: dict[str, str]) -> Turn | None:
    """The user states one to three new things; None when everything has been said."""
    new = [kind for kind in FACTS if kind not in known]
    kinds = rng.sample(new, min(len(new), rng.choice((1, 1, 2, 3))))
    if not kinds:
        return None
    facts = {kind: rng.choice(FACTS[kind].values) for kind in kinds}
    text = " ".join(rng.choice(FACTS[k].say.split("|")).format(v=v) for k, v in facts.items())
    low = "The user tells me something."
    high = low + " I have to remember it for later."
    return Turn("tell", text, (low, low + " I note it.", high), NOTED, NOTED, facts)


def ask(rng: Random, known: dict[str, str], kind: str | None = None) -> Turn:
    """The user asks for something said before, or now and then for something never said."""
    kind = kind or rng.choice(list(known))
    user = cased(rng, rng.choice(FACTS[kind].ask.split("|")))
    if kind not in known:
        low = f"The user did not say the {kind}."
        final = f"You did not tell me the {kind}."
        return Turn("recall", user, (low, low, low + " I cannot know it."), final, final)
    value = known[kind]
    low = f"The {kind}: {value}."
    medium = f"The user asks for the {kind}: {value}."
    final = FACTS[kind].answer.format(v=value)
    return Turn("recall", user, (low, medium, "I remember. " + medium), final, value)


def filler(rng: Random, sentences: int) -> str:
    """Talk between what is said and what is asked; about nine tokens a sentence."""
    out = []
    for _ in range(sentences):
        noun, place = rng.sample(NOUNS, 2)
        noun = UNKNOWN if rng.random() < 0.06 else noun
        kind, verb, where = (rng.choice(part) for part in (ADJECTIVES, VERBS, PLACES))
        out.append(f"The {kind} {noun} {verb} {where} the {place}.")
    return " ".join(out)
