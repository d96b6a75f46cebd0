"""The tool that asks another model: a function `ask_NAME(question)`.

The other model sees the question and its own instructions, nothing else of the conversation.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.harmony.schema import clean
from gptoss_mlx.spec.recipients import FUNCTIONS
from gptoss_mlx.tools.browser.web.address import Resolver, system_addresses
from gptoss_mlx.tools.models.endpoint import Endpoint
from gptoss_mlx.tools.models.exchange import Exchange, ExchangeError, Reply
from gptoss_mlx.tools.tool import Outcome, never

ANSWER_LIMIT = 32_000
"""Characters of an answer that the model reads."""

_SAID = 300  # characters of an error that are told
_HIDDEN = "[key]"
_KNOWN = {
    401: "refuses the key",
    403: "refuses this request",
    404: "has no such model, or no such API at this URL",
    413: "finds the question too long",
    429: "is asked too often, or its quota is used up; ask again later, or answer without it",
}
"""Statuses of HTTP -> what they mean."""


class ModelTool:
    """Asks one endpoint. resolve: gives the addresses of its host."""

    def __init__(self, endpoint: Endpoint, resolve: Resolver = system_addresses) -> None:
        self._endpoint, self._resolve = endpoint, resolve
        self.name = f"ask_{endpoint.name}"

    @property
    def offers(self) -> Sequence[Mapping[str, object]]:
        about = "The question, with all that is needed to answer it."
        parameters = {
            "type": "object",
            "properties": {"question": {"type": "string", "description": about}},
            "required": ["question"],
        }
        function = {"name": self.name, "description": self._about, "parameters": parameters}
        return ({"type": "function", "function": function},)

    def call(self, recipient: str, text: str, cancel: Callable[[], bool] = never) -> Outcome:
        """The other model's answer to a question; `text` is JSON with it."""
        if recipient != FUNCTIONS + self.name:
            return Outcome(f"There is no {recipient[:80]}.", failed=True)
        question = _question(text)
        if question is None:
            return Outcome('The arguments must be {"question": "..."}, and not empty.', failed=True)
        try:
            given = Outcome(_answer(self._post(question, cancel)))
        except ExchangeError as error:
            given = Outcome(f"{self.name} gave no answer. {error}", failed=True)
        return Outcome(self._without_key(given.text), failed=given.failed)

    def close(self) -> None:
        """No connection stays open."""

    @property
    def _about(self) -> str:
        endpoint, host = self._endpoint, self._endpoint.target.hostname or ""
        where = "is sent to a server on this machine"
        if not _is_loopback(host):
            where = f"leaves this machine, for {host}, and may cost money"
        said = (
            f"Ask another model, {endpoint.model}. {endpoint.description}".strip(),
            f"The question {where}. It takes up to {endpoint.time_limit:g} seconds.",
            "The other model sees the question alone, nothing of this conversation.",
        )
        return "\n".join(said)

    def _post(self, question: str, cancel: Callable[[], bool]) -> Reply:
        endpoint = self._endpoint
        messages = [{"role": "user", "content": question}]
        if endpoint.system:
            messages.insert(0, {"role": "system", "content": endpoint.system})
        body = {**endpoint.options, "model": endpoint.model, "messages": messages, "stream": False}
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "User-Agent": "gptoss-mlx",
        }
        if endpoint.key is not None:
            headers["Authorization"] = f"Bearer {endpoint.key}"
        data = json.dumps(body).encode("ascii")
        limit = endpoint.time_limit
        return Exchange(endpoint.target, headers, data, limit, self._resolve).run(cancel)

    def _without_key(self, text: str) -> str:
        """The text without the key, which a server may quote."""
        return text.replace(self._endpoint.key, _HIDDEN) if self._endpoint.key else text


def _question(text: str) -> str | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    question = value.get("question") if isinstance(value, dict) else None
    return clean(question) if isinstance(question, str) and question.strip() else None


def _answer(reply: Reply) -> str:
    """The text of the first choice. Raises ExchangeError."""
    if 300 <= reply.status < 400:
        location = shown(reply.headers.get("location", ""))
        raise ExchangeError(f"It redirects to {location}, which is not followed.")
    value = _parsed(reply.body)
    if reply.status != 200:
        meaning = _KNOWN.get(reply.status, "answered with an error")
        raise ExchangeError(f"It {meaning} (status {reply.status}).{_said(reply, value)}")
    choices = value.get("choices") if isinstance(value, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise ExchangeError("Its answer is not JSON as the OpenAI API has it.")
    text = _text(message.get("content")) or _text(message.get("refusal"))
    if not text:
        raise ExchangeError("Its answer is empty.")
    if len(text) > ANSWER_LIMIT:
        note = f"[cut off after {ANSWER_LIMIT:,} of {len(text):,} characters]"
        return f"{text[:ANSWER_LIMIT]}\n{note}"
    if choice.get("finish_reason") == "length":
        return f"{text}\n[cut off by the other model's limit]"
    return text


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _text(content: object) -> str:
    """A content, which may be in parts."""
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(text for text in texts if isinstance(text, str))
    return clean(content) if isinstance(content, str) else ""


def _said(reply: Reply, value: Any) -> str:
    """What a server says of its error, and when to ask again."""
    error = value.get("error") if isinstance(value, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    said = f" It says: {clean(message)[:_SAID]}" if isinstance(message, str) and message else ""
    after = reply.headers.get("retry-after", "")
    return said + (f" It asks to wait {after} seconds." if after.isdecimal() else "")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
