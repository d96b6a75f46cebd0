"""An agent's conversation as it comes to a server: tools at the head, calls, results, reasoning.

What it says is made up and always the same; a request is `messages`, its reply is `reply`.
"""

from __future__ import annotations

import random
from typing import Any

from tests.support.scripted_model import AGAIN, ANALYSIS, FINAL

Message = dict[str, Any]
WORDS = (
    *("file", "search", "read", "write", "list", "open", "path", "line"),
    *("number", "result", "build", "test", "error", "name", "value"),
)


def tools(count: int) -> list[Message]:
    """Function tools, each of about 100 tokens."""
    rng = random.Random(count)
    return [
        {
            "type": "function",
            "function": {
                "name": f"tool_{i}",
                "description": _words(rng, 40),
                "parameters": {
                    "type": "object",
                    "properties": {
                        f"argument_{j}": {"type": "string", "description": _words(rng, 10)}
                        for j in range(4)
                    },
                },
            },
        }
        for i in range(count)
    ]


class Agent:
    """Each turn: a question, up to two calls with results, an answer; reasoning before each.

    Of what was said, reasoning goes back with calls; a client leaves it out of earlier answers.
    """

    def __init__(self, name: str, tools: list[Message], words: int = 60) -> None:
        self.tools, self.turns, self._words = tools, 0, words
        self._rng = random.Random(name)
        self.messages: list[Message] = [self._question()]
        self._calls = 0
        self._prepare()

    def heard(self) -> None:
        """The reply has come: go on to the next request."""
        self.messages.append(self._answer)
        if self._answer["content"] is None:
            said = self._say(3)
            self.messages.append(
                {"role": "tool", "tool_call_id": f"c{self._calls}", "content": said}
            )
        else:
            self.turns += 1
            self.messages.append(self._question())
        self._prepare()

    def _prepare(self) -> None:
        reasoning, rng = self._say(1), self._rng
        thought = ANALYSIS + reasoning + AGAIN
        if rng.random() < 0.6 and self.tools:
            self._calls += 1
            name, arguments = f"tool_{rng.randrange(len(self.tools))}", '{"argument_0": "x"}'
            call = {"id": f"c{self._calls}", "function": {"name": name, "arguments": arguments}}
            self._answer = _assistant(None, reasoning, [call])
            header = f" to=functions.{name}<|channel|>commentary <|constrain|>json<|message|>"
            self.reply = thought + header + arguments + "<|call|>"
            return
        said = self._say(2)
        silent = rng.random() < 0.2  # an answer without reasoning
        self._answer = _assistant(said, "" if silent else reasoning)
        self.reply = ("" if silent else thought) + FINAL + said + "<|return|>"

    def _question(self) -> Message:
        return {"role": "user", "content": self._say(1)}

    def _say(self, times: int) -> str:
        return _words(self._rng, times * self._words)


def _assistant(content: str | None, reasoning: str, calls: list[Message] | None = None) -> Message:
    said = {"role": "assistant", "content": content, "reasoning": reasoning}
    return {**said, "tool_calls": calls} if calls else said


def _words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))
