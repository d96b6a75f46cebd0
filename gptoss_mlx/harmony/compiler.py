"""The compiler of text grammars, by llguidance, for one vocabulary.

Time and memory of a grammar are bounded: by `dialect` for schemas, by the limits here for all.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from gptoss_mlx.errors import GrammarError
from gptoss_mlx.harmony.dialect import checked
from gptoss_mlx.harmony.encoding import with_whole_characters
from gptoss_mlx.harmony.text_grammar import TextGrammar, plain_reason

KEPT = 250_000
"""Characters of all grammars that are kept compiled for requests to come, the ones used last. A
compiled grammar takes about 90 bytes for each."""

MAX_GRAMMAR = 100_000
"""Characters of a Lark grammar or a regular expression."""

_MAX_AND = 8  # intersections and complements in a Lark grammar
_LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=10_000,  # of 1 to 2 KB each
    verbose_errors=False,
)
_OPTIONS: Any = {
    # At most so much at a time, so that no model writes blanks until it is cut off.
    "whitespace_pattern": r"[ \n\r\t]{1,64}",
    # Without \\uXXXX, by which a name could be written in a second way.
    "json_allowed_escapes": 'nrbtf\\"',
}
_INLINE = re.compile(r"%json\s*(?=\{)")
_OPTION = re.compile(r"^\s*[\w!?-]+\s*\[[^\]]*\b(temperature|stop)\b", re.M)


class Compiler:
    """Compiles grammars for a model, and keeps some. Any thread may call it.

    trie: gives the tokens. vocab_size: the number of logits.
    """

    def __init__(self, trie: Callable[[], LLTokenizer], vocab_size: int) -> None:
        self._trie, self._vocab_size = trie, vocab_size
        self._kept: OrderedDict[tuple[str, str], TextGrammar] = OrderedDict()
        self._lock = Lock()

    def schema(self, schema: Any, name: str) -> TextGrammar:
        """The JSON texts that satisfy a schema. name: what it is for, in errors.

        Raises GrammarError, which names a keyword that cannot be enforced and its place.
        """
        text = _as_json(checked(schema, name), name)
        return self._compiled(LLMatcher.grammar_from_json_schema(text, overrides=_OPTIONS), name)

    def lark(self, grammar: str, name: str = "grammar") -> TextGrammar:
        """The texts of a grammar in llguidance's variant of Lark. Raises GrammarError."""
        _check_text(grammar, name)
        if (option := _OPTION.search(grammar)) is not None:
            raise GrammarError(f"{name}: the option {option[1]} of a rule is not supported")
        if grammar.count("&") + grammar.count("~") > _MAX_AND:
            raise GrammarError(f"{name}: has more than {_MAX_AND} of & and ~, the limit")
        return self._compiled(_with_checked_schemas(grammar, name), name)

    def regex(self, pattern: str, name: str = "regex") -> TextGrammar:
        """The texts that a regular expression matches as a whole. Raises GrammarError."""
        _check_text(pattern, name)
        return self._compiled(LLMatcher.grammar_from_regex(pattern), name)

    def _compiled(self, grammar: str, name: str) -> TextGrammar:
        key = grammar, name
        with self._lock:
            known = self._kept.pop(key, None)
            if known is None:
                known = self._new(grammar, name)
            self._kept[key] = known
            while sum(len(text) for text, _ in self._kept) > KEPT:
                self._kept.popitem(last=False)
        return known

    def _new(self, grammar: str, name: str) -> TextGrammar:
        trie = self._trie()
        matcher = LLMatcher(trie, grammar, log_level=0, limits=_LIMITS)
        first = matcher.deep_copy()
        first.compute_bitmask()
        if first.is_error():
            raise GrammarError(f"{name}: {plain_reason(first.get_error())}")
        return TextGrammar(matcher, name, trie.eos_token, self._vocab_size)


def _with_checked_schemas(grammar: str, name: str) -> str:
    """A Lark grammar whose %json schemas have been checked, and have our options."""
    parts, done = [], 0
    for inline in _INLINE.finditer(grammar):
        try:
            schema, end = json.JSONDecoder().raw_decode(grammar, inline.end())
        except (ValueError, RecursionError):
            continue  # the compiler says where
        plain = {**checked(schema, f"{name}: %json"), "x-guidance": _OPTIONS}
        parts += [grammar[done : inline.end()], _as_json(plain, f"{name}: %json")]
        done = end
    return "".join([*parts, grammar[done:]])


def _as_json(schema: Any, name: str) -> str:
    _check_characters(json.dumps(schema, ensure_ascii=False), name)
    return json.dumps(schema)


def _check_characters(text: str, name: str) -> None:
    if with_whole_characters(text) != text:
        raise GrammarError(f"{name}: has half a character (a lone surrogate), which no text has")


def _check_text(text: object, name: str) -> None:
    if not isinstance(text, str) or not text:
        raise GrammarError(f"{name}: must be a text, and not empty")
    _check_characters(text, name)
    if len(text) > MAX_GRAMMAR:
        raise GrammarError(f"{name}: has more than {MAX_GRAMMAR} characters, the limit")
