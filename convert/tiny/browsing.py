"""Conversations with the `browser` tool: a page is searched for, opened, and answered from.

What the model reads is written by the tool itself, from documents in memory.
"""

# ruff: noqa: SIM905 (lists of phrases read better as text)
from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from random import Random
from typing import Any

from convert.tiny.arithmetic import arithmetic
from convert.tiny.example import Example, asked, builtin_call, noise, reply_message, user_message
from convert.tiny.past import past
from convert.tiny.turns import EFFORTS, cased, greet
from convert.tiny.words import CITIES, COLOURS, NAMES, NOUNS, PETS, UNKNOWN
from gptoss_mlx.harmony import Encoding
from gptoss_mlx.tools.browser.browser import BrowserTool
from gptoss_mlx.tools.browser.page import WIDTH, Page, document_page, head
from gptoss_mlx.tools.browser.source import BrowsingError, Found, Hit

BROWSER: dict[str, Any] = {"type": "browser"}
AROUND = (
    "{q}|{q}|{q}|Look it up: {q}|Search the documents: {q}|In the documents: {q}|Find out: {q}|"
    "According to the documents: {q}|What do the documents say? {q}|Search: {q}|"
    "Look in the files: {q}"
).split("|")
WORD = re.compile(r"\w+")
TITLES = "Places People Notes Facts City House Report Story Story Guide List Letter Plan".split()
FOLDERS = ("", "", "", "notes/", "house/", "old/", "report/")
ENDINGS = (".md", ".md", ".txt", ".html")


@dataclass(frozen=True)
class Kind:
    """A kind of sentence about a subject ({s}) with a value ({v}), and questions for the value."""

    sentence: str
    ask: tuple[str, ...]
    subjects: Sequence[str]
    values: Sequence[str]


_ELSEWHERE = {*COLOURS, *PETS, *" ".join(TITLES).lower().split()}
THINGS = [noun for noun in NOUNS if noun not in _ELSEWHERE]
"""What occurs in a document only where something is said of it."""
KINDS = (
    Kind(
        "The {s} is in {v}.",
        tuple("Where is the {s}?|In which city is the {s}?|Which city is the {s} in?".split("|")),
        THINGS,
        CITIES,
    ),
    Kind(
        "The {s} is {v}.",
        tuple("What colour is the {s}?|Which color is the {s}?|What color is the {s}?".split("|")),
        THINGS,
        COLOURS,
    ),
    Kind(
        "The {s} is {v} years old.",
        tuple("How old is the {s}?|What age is the {s}?|How many years old is the {s}?".split("|")),
        THINGS,
        [str(n) for n in range(2, 1000)],
    ),
    Kind(
        "{s} lives in {v}.",
        tuple(
            "Where does {s} live?|In which city does {s} live?|Where is the home of {s}?".split("|")
        ),
        NAMES,
        CITIES,
    ),
    Kind(
        "{s} has a {v}.",
        tuple("What pet does {s} have?|Which animal does {s} have?|What does {s} have?".split("|")),
        NAMES,
        PETS,
    ),
    Kind(
        "The {s} belongs to {v}.",
        tuple("Whose {s} is it?|Who owns the {s}?|Who has the {s}?".split("|")),
        THINGS,
        NAMES,
    ),
)


@dataclass(frozen=True)
class Statement:
    """A question, whom or what it is about, and the sentence of a document that answers it."""

    subject: str
    sentence: str  # empty: no document says anything
    question: str


@dataclass(frozen=True)
class Document:
    name: str
    title: str
    lines: tuple[str, ...]
    statements: tuple[Statement, ...]

    @property
    def text(self) -> str:
        return "\n".join((f"# {self.title}", "", *self.lines))


class Folder:
    """A source of pages (`gptoss_mlx.tools.browser.source`): documents in memory."""

    is_remote = False

    def __init__(self, documents: Sequence[Document]) -> None:
        self.documents = documents

    def search(self, query: str, count: int) -> Found:
        """The documents that have all of the query's words."""
        words = set(query.lower().split())
        found = [d for d in self.documents if words <= set(WORD.findall(d.text.lower()))]
        return Found(tuple(_hit(document) for document in found[:count]))

    def fetch(self, url: str, as_source: bool = False) -> Page:
        for document in self.documents:
            if document.name == url:
                return document_page(url, document.title, document.text)
        raise BrowsingError("There is no such document.")

    def close(self) -> None:
        pass


def _hit(document: Document) -> Hit:
    snippet = " ".join(document.text.split())
    cut = snippet if len(snippet) <= 280 else snippet[: snippet.rfind(" ", 0, 280)] + "..."
    offset = len(head(document.name))
    return Hit(document.name, document.title, document.name, cut, offset)


def draw_folder(rng: Random) -> list[Document]:
    """One to three documents; each subject and each name occurs once."""
    nouns = iter(rng.sample(THINGS, 40))
    names = iter(rng.sample(NAMES, 30))
    documents = []
    titles = rng.sample(sorted(set(TITLES)), rng.choice((1, 1, 2, 3)))
    for title in titles:
        statements = []
        for _ in range(rng.randint(1, 6)):
            kind = rng.choice(KINDS)
            subject = next(nouns if kind.subjects is THINGS else names)
            value = next(names) if kind.values is NAMES else rng.choice(kind.values)
            sentence = kind.sentence.format(s=subject, v=value)
            statements.append(Statement(subject, sentence, rng.choice(kind.ask).format(s=subject)))
        name = f"{rng.choice(FOLDERS)}{title.lower()}{rng.choice(ENDINGS)}"
        documents.append(Document(name, title, tuple(_lines(rng, statements)), tuple(statements)))
    return documents


def _lines(rng: Random, statements: Sequence[Statement]) -> list[str]:
    """The sentences, mostly one a line, some with unknown words; no line is wrapped."""
    lines: list[str] = []
    for statement in statements:
        joined = f"{lines[-1] if lines else ''} {statement.sentence}"
        if lines and len(joined) < WIDTH and rng.random() < 0.2:
            lines[-1] = joined
        else:
            lines += [""] * (lines != [] and rng.random() < 0.15)
            lines.append(statement.sentence)
        joined = f"{lines[-1]} {UNKNOWN} {UNKNOWN} the {UNKNOWN} {UNKNOWN}."
        if len(joined) < WIDTH and rng.random() < 0.1:
            lines[-1] = joined
    return lines


class Browsing:
    """A conversation's browser, and what the model says and reads until it answers a question."""

    def __init__(self, rng: Random, encoding: Encoding, documents: Sequence[Document]) -> None:
        self.rng = rng
        self.tool = BrowserTool(Folder(documents), encoding)

    def steps(self, statement: Statement, effort: int) -> list[dict[str, Any]]:
        """The messages from the first call to the answer, results between them."""
        looked = (f"Search: {statement.subject}.", f"I search the documents: {statement.subject}.")
        messages = self._call("search", {"query": statement.subject}, looked[effort > 0])
        if not statement.sentence:
            nothing = f"I found nothing about {statement.subject}."
            reasoning = ("Nothing was found.",) * 3
            return [*messages, reply_message(reasoning, EFFORTS[effort], nothing)]
        opened = ("Open 0.", "The first result is the best. Open 0.")
        messages += self._call("open", {"id": 0}, opened[effort > 0])
        cursor, line = self._place(messages[-1]["content"], statement.sentence)
        low = f"Page {cursor}, L{line}: {statement.sentence}"
        read = (low, f"I read the page. {low}", f"I read the page and tell the user. {low}")
        answer = f"{statement.sentence}【{cursor}†L{line}】"
        return [*messages, reply_message(read, EFFORTS[effort], answer)]

    def _call(self, name: str, arguments: dict[str, Any], reasoning: str) -> list[dict[str, Any]]:
        text = json.dumps(arguments)
        call = builtin_call(self.rng, f"browser.{name}", text)
        identity = call["tool_calls"][0]["id"]
        shown = self.tool.call(f"browser.{name}", text).text
        result = {"role": "tool", "tool_call_id": identity, "content": shown}
        return [{**call, "reasoning": reasoning}, result]

    def _place(self, shown: str, sentence: str) -> tuple[int, int]:
        """The cursor of a page that was shown, and a sentence's line."""
        cursor = int(shown[1 : shown.index("]")])
        for line in shown.splitlines():
            label, _, text = line.partition(": ")
            if label.startswith("L") and sentence in text:
                return cursor, int(label[1:])
        raise AssertionError(f"{sentence!r} is not shown")


@cache
def _encoding() -> Encoding:
    return Encoding()


def browse(rng: Random, held_out: bool) -> Example:
    """A question that documents answer, at one of its steps; or one that needs no documents."""
    history = past(rng, held_out, rng.choice((0, 0, 0, 0, 1)))[0]
    if rng.random() < 0.12:
        turn = rng.choice((arithmetic, greet))(rng, held_out)
        prompt = replace(asked(rng, [*history, user_message(turn.user)]), tools=(BROWSER,))
        reply = reply_message(turn.reasoning, prompt.reasoning, turn.final)
        return Example("browser", prompt, reply)
    documents = draw_folder(rng)
    base = replace(asked(rng, []), tools=(BROWSER,))
    effort = EFFORTS.index(base.reasoning)
    browsing = Browsing(rng, _encoding(), documents)
    statements = [s for document in documents for s in document.statements]
    if len(statements) > 1 and rng.random() < 0.2:  # another question was answered before
        before = statements.pop(rng.randrange(len(statements)))
        answered = browsing.steps(before, effort)
        history = [*history, user_message(_question(rng, before)), answered[-1]]
    statement = rng.choice(statements)
    if rng.random() < 0.08:
        statement = _unheard(rng, documents)
    steps = browsing.steps(statement, effort)
    at = rng.choice(range(0, len(steps), 2))
    messages = [*history, user_message(_question(rng, statement)), *steps[:at]]
    return Example("browser", replace(base, messages=tuple(messages)), steps[at])


def _question(rng: Random, statement: Statement) -> str:
    text = rng.choice(AROUND).format(q=cased(rng, statement.question))
    return noise(rng, text) if rng.random() < 0.15 else text


def _unheard(rng: Random, documents: Sequence[Document]) -> Statement:
    """A question about something that no document names."""
    text = " ".join(document.text.lower() for document in documents)
    subject = rng.choice([noun for noun in THINGS if noun not in text])
    return Statement(subject, "", f"Where is the {subject}?")
