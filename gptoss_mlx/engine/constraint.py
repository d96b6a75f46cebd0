"""The constraint on an answer: its headers, and the text of each message that is not free.

Analysis and what is said before a call are free. The final message follows the response format, the
grammar or the regular expression; a call's arguments follow the function's schema.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral

from gptoss_mlx.engine.options import Message
from gptoss_mlx.errors import GrammarError, MessageError, SamplingError
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.harmony import Encoding, Headers, HeaderState, Mask, read_tools
from gptoss_mlx.harmony.budget import with_budget
from gptoss_mlx.harmony.compiler import Compiler
from gptoss_mlx.harmony.header import Header
from gptoss_mlx.harmony.response_format import read_response_format
from gptoss_mlx.harmony.text_grammar import GrammarState, TextGrammar
from gptoss_mlx.harmony.tool_choice import read_tool_choice
from gptoss_mlx.harmony.tools import Function
from gptoss_mlx.spec.recipients import FUNCTIONS

ANY_OBJECT = {"type": "object"}


@dataclass(frozen=True)
class Constraint:
    """The options of one request that constrain its answer. Options: see `Engine.stream`."""

    tools: Sequence[Message] = ()
    response_format: Message | None = None
    tool_choice: str | Message | None = None
    grammar: str | None = None
    regex: str | None = None
    reasoning_budget: int | None = None
    headers: bool = True

    def harmony(
        self, encoding: Encoding, compiler: Compiler, vocab_size: int
    ) -> GrammarState | None:
        """The state at the beginning of a turn; None if nothing is constrained.

        Raises MessageError, GrammarError or SamplingError.
        """
        self._check()
        tools = read_tools(self.tools)
        answer = self._answer(compiler)
        choice = read_tool_choice(self.tool_choice, tools)
        if not self.headers:
            return None
        functions = {FUNCTIONS + f.name: _arguments(f, compiler) for f in choice.tools.functions}

        def grammar_of(header: Header) -> TextGrammar | None:
            if header.recipient is not None:
                return functions.get(header.recipient)
            return answer if header.channel == "final" else None

        start = partial(
            Headers,
            encoding,
            tools=[function.name for function in choice.tools.functions],
            builtin=choice.tools.builtin,
            response_format=self.response_format,
            vocab_size=vocab_size,
            answer=not choice.must,
            grammar_of=grammar_of,
        )
        if choice.must:  # each kind once, or a model that wants to answer never comes to its call
            call = start(reasoning=False, preamble=False).start()
            spent = start(reasoning=False, then=call).start()
            begin = start(then=spent).start()
        else:
            begin = start().start()
            spent = begin if self.reasoning_budget is None else start(reasoning=False).start()
        budget = self.reasoning_budget
        return begin if budget is None else with_budget(begin, spent, budget)

    def raw(self, compiler: Compiler, ends: Sequence[int]) -> GrammarState | None:
        """The state at the beginning of a text without Harmony; None if it is free.

        ends: the tokens that may end it. Raises MessageError or GrammarError.
        """
        if self.tool_choice:
            raise MessageError("raw mode knows no tools, and so no tool_choice")
        if self.reasoning_budget is not None:
            raise MessageError("raw mode knows no reasoning, and so no reasoning_budget")
        answer = self._answer(compiler)
        return None if answer is None else answer.start(ends, HeaderState(Mask(ban=())))

    def _check(self) -> None:
        budget = self.reasoning_budget
        whole = isinstance(budget, Integral) and not isinstance(budget, bool)
        if budget is not None and not (whole and budget >= 0):
            raise SamplingError(
                f"reasoning_budget is {shown(budget)}, but must be a whole number from 0"
            )
        if not self.headers:
            for name in ("tool_choice", "grammar", "regex", "reasoning_budget"):
                if getattr(self, name) is not None:
                    raise MessageError(f"{name} needs the header grammar: constrain_headers=False")

    def _answer(self, compiler: Compiler) -> TextGrammar | None:
        """The grammar of the answer's text, if it is not free."""
        asked = read_response_format(self.response_format)
        given = {"response_format": asked, "grammar": self.grammar, "regex": self.regex}
        several = [name for name, value in given.items() if value is not None]
        if len(several) > 1:
            raise MessageError(f"{' and '.join(several)}: give one of them")
        if self.grammar is not None:
            return compiler.lark(self.grammar)
        if self.regex is not None:
            return compiler.regex(self.regex)
        if asked is None or not self.headers:
            return None
        return compiler.schema(asked.schema, "response_format")


def _arguments(function: Function, compiler: Compiler) -> TextGrammar:
    """The grammar of a call's arguments: any object where a schema that is not strict cannot be
    enforced."""
    schema: Mapping[str, object] = function.schema or ANY_OBJECT
    try:
        return compiler.schema(schema, f"tool {function.name}")
    except GrammarError:
        if function.strict:
            raise
    return compiler.schema(ANY_OBJECT, "arguments")
