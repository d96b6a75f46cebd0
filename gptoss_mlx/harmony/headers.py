"""The header grammar of Harmony: which token may come next while a model writes.

Every permitted header is a path of a trie over its canonical tokens. Inside a free message the mask
is one and the same object, so that decoding need not wait for it; inside one with a grammar of its
own the states are that grammar's. Every state has a next state, also after tokens the grammar did
not permit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache

from gptoss_mlx.harmony.encoding import (
    ASSISTANT,
    CALL,
    CHANNEL,
    CONSTRAIN,
    END,
    MESSAGE,
    ORDINARY_TOKENS,
    RETURN,
    START,
    VOCAB_SIZE,
    Encoding,
)
from gptoss_mlx.harmony.header import Header, read_header
from gptoss_mlx.harmony.text_grammar import GrammarState, TextGrammar
from gptoss_mlx.spec.recipients import BUILTIN, FUNCTIONS
from gptoss_mlx.spec.sampling import Mask

_WORDS = re.compile(r"<\|\w+\|>| ?[^\s<]+| ")
_ENDS = (END, RETURN, CALL)


class HeaderState:
    """A state of the grammar. `header` is set inside a free message and says which one it is."""

    __slots__ = ("_next", "_other", "header", "mask")

    def __init__(self, mask: Mask, header: Header | None = None) -> None:
        self.mask = mask
        self.header = header
        self._next: dict[int, GrammarState] = {}
        self._other: HeaderState = self

    def advance(self, id: int) -> GrammarState:
        """The state after this token, also if the token is not permitted."""
        return self._next.get(id, self._other)

    def link(self, id: int, state: GrammarState) -> None:
        """While the grammar is built: set the state after a token, unless it is set already."""
        self._next.setdefault(id, state)

    def lead(self, state: HeaderState) -> None:
        """While the grammar is built: set the state after all other tokens."""
        self._other = state


class Headers:
    """The grammar for a set of functions.

    `tools` are function names without namespace, `builtin` may hold "browser" and "python".
    With `response_format` a final message may be declared as JSON. Without `reasoning` there is no
    analysis but in calls of builtin tools, without `preamble` nothing is said before a call,
    without `answer` only a call ends the turn. `then` is the state where the messages after the
    first one begin, if not that of the first. `grammar_of` gives the grammar of a message's text,
    None where it is free. `vocab_size` is the number of logits: ids without a token are banned.
    """

    def __init__(
        self,
        encoding: Encoding,
        *,
        tools: Iterable[str] = (),
        builtin: Iterable[str] = (),
        response_format: object = None,
        vocab_size: int = VOCAB_SIZE,
        reasoning: bool = True,
        preamble: bool = True,
        answer: bool = True,
        then: HeaderState | None = None,
        grammar_of: Callable[[Header], TextGrammar | None] = lambda header: None,
    ) -> None:
        self._specials = tuple(range(ORDINARY_TOKENS, max(vocab_size, VOCAB_SIZE)))
        self._grammar_of = grammar_of
        self._messages: dict[Header, HeaderState] = {}
        self._firsts: dict[HeaderState, HeaderState] = {}
        self._bans: dict[int, Mask] = {}
        # the states after tokens that are not permitted: any header, then any message
        self._lost = HeaderState(self._ban(CHANNEL, CONSTRAIN, MESSAGE, START, *_ENDS))
        loose = HeaderState(self._ban(*_ENDS))
        self._again = HeaderState(Mask(allow=(START,)))
        role = HeaderState(Mask(allow=(ASSISTANT,)))
        texts = [
            *_plain(reasoning, answer, response_format is not None),
            *_calls(tuple(tools), tuple(builtin), preamble),
        ]
        ids = cache(encoding.encode_special)  # a name is in several headers
        paths = {
            tuple(id for word in _WORDS.findall(text) for id in ids(word)): read_header(text)
            for text in texts
        }
        self._nodes: list[HeaderState] = []
        self._start = self._trie(paths)
        inside = (*self._messages.values(), *self._firsts.values(), loose)
        for state in (*self._nodes, *inside, self._lost, self._again, role):
            state.link(START, role)
            for end in _ENDS:
                state.link(end, self._again)
        for state in (*self._nodes, self._lost, self._again, role):
            state.link(MESSAGE, loose)
            state.lead(self._lost)
        role.link(ASSISTANT, then or self._start)

    def start(self) -> HeaderState:
        """The state just after the prompt's `<|start|>assistant`."""
        return self._start

    def _ban(self, *permitted: int) -> Mask:
        return Mask(ban=tuple(id for id in self._specials if id not in permitted))

    def _node(self, paths: Mapping[tuple[int, ...], Header]) -> GrammarState:
        """The trie of these token sequences; an empty sequence is where the message begins."""
        return self._message(paths[()]) if () in paths else self._trie(paths)

    def _trie(self, paths: Mapping[tuple[int, ...], Header]) -> HeaderState:
        rests: dict[int, dict[tuple[int, ...], Header]] = {}
        for path, header in paths.items():
            rests.setdefault(path[0], {})[path[1:]] = header
        node = HeaderState(Mask(allow=tuple(sorted(rests))))
        for id, rest in rests.items():
            node.link(id, self._node(rest))
        self._nodes.append(node)
        return node

    def _message(self, header: Header) -> GrammarState:
        """The inside of a message: ordinary tokens, and the one special that ends it. An answer is
        not empty: whoever asked would take it for a fault of the program."""
        end = CALL if header.recipient else RETURN if header.channel == "final" else END
        if header not in self._messages:
            mask = self._bans.setdefault(end, self._ban(end))
            self._messages[header] = HeaderState(mask, header)
        free, grammar = self._messages[header], self._grammar_of(header)
        if grammar is not None:
            return grammar.start((end,), free)
        return self._first(free) if end == RETURN else free

    def _first(self, message: HeaderState) -> HeaderState:
        """The state before the first token of a message, which does not end it."""
        if message not in self._firsts:
            self._firsts[message] = HeaderState(self._ban(), message.header)
            self._firsts[message].lead(message)
        return self._firsts[message]


def _plain(reasoning: bool, answer: bool, json: bool) -> Iterator[str]:
    """The headers of the messages to the user, and of the analysis."""
    if reasoning:
        yield "<|channel|>analysis<|message|>"
    if answer:
        yield "<|channel|>final<|message|>"
    if answer and json:
        yield "<|channel|>final <|constrain|>json<|message|>"


def _calls(tools: tuple[str, ...], builtin: tuple[str, ...], preamble: bool) -> Iterator[str]:
    """The headers of calls, and that of what is said before one."""
    if tools and preamble:
        yield "<|channel|>commentary<|message|>"
    for name in tools:
        for kind in (" <|constrain|>json", ""):
            yield f" to={FUNCTIONS}{name}<|channel|>commentary{kind}<|message|>"
            yield f"<|channel|>commentary to={FUNCTIONS}{name}{kind}<|message|>"
    for name in (name for tool in builtin for name in BUILTIN[tool]):
        for kind in (" code", ""):
            yield f" to={name}<|channel|>analysis{kind}<|message|>"
            yield f"<|channel|>analysis to={name}{kind}<|message|>"
