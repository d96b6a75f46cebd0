"""What is asked: options, prompt and files of a command, as the arguments of `Engine.stream`.

Everything that can be refused without the model is refused here, before it is loaded.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from gptoss_mlx.errors import MessageError
from gptoss_mlx.jsonfile import shown
from gptoss_mlx.sampling import Sampling

FILE_LIMIT = 64 << 20  # bytes
_CONVERSATION_KEYS = ("messages", "tools", "response_format", "reasoning_effort")
_FORMATS = ("text", "json_object", "json_schema")
_SCHEMA_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_EFFORTS = ("low", "medium", "high")
_F = TypeVar("_F", bound=Callable[..., Any])


def _biases(
    context: click.Context, parameter: click.Parameter, given: tuple[str, ...]
) -> dict[int, float] | None:
    """ID=VALUE, repeated, as {ID: VALUE}; None if not given."""
    biases = {}
    for text in given:
        token, _, bias = text.partition("=")
        try:
            biases[int(token)] = float(bias)
        except ValueError as error:
            raise click.BadParameter(f"{text!r} is not like 1734=-5") from error
    return biases or None


_FILE = click.Path(path_type=Path)

# None (or empty, or False) if not given, so that the checkpoint's own defaults apply.
_OPTIONS = (
    click.argument("prompt", required=False),
    click.option("--messages", type=_FILE, help="JSON file: chat messages. PROMPT is added."),
    click.option("--system", help="Instructions for the model."),
    click.option("--reasoning", type=click.Choice(_EFFORTS), help="How long to think."),
    click.option("--tools", type=_FILE, help="JSON file: a list of OpenAI function tools."),
    click.option(
        "--response-format",
        metavar="FILE|json",
        help='JSON file: a response format or JSON schema; or the word "json".',
    ),
    click.option("--raw", is_flag=True, help="Continue the text as it is, without Harmony."),
    click.option("--no-constrain", is_flag=True, help="Let the model write any Harmony header."),
    click.option("--max-tokens", type=click.IntRange(min=1), help="Most tokens to generate."),
    click.option("--stop", multiple=True, help="End before this text. Repeatable."),
    click.option("--temperature", type=float, help="0 takes the most probable token."),
    click.option("--top-p", type=float, help="Only the first tokens that together reach this."),
    click.option("--top-k", type=int, help="Only this many tokens; 0 is all."),
    click.option("--min-p", type=float, help="Only tokens this probable, relative to the first."),
    click.option("--repetition-penalty", type=float, help="Divides logits of tokens seen."),
    click.option("--presence-penalty", type=float, help="Subtracted once from tokens written."),
    click.option("--frequency-penalty", type=float, help="Subtracted for each use of a token."),
    click.option(
        "--logit-bias",
        metavar="ID=VALUE",
        multiple=True,
        callback=_biases,
        help="Added to a token's logit. Repeatable.",
    ),
    click.option("--seed", type=int, help="Repeats the same output."),
    click.option("--logprobs", is_flag=True, help="Log-probabilities, in --json."),
    click.option("--top-logprobs", type=int, help="And those of this many alternatives."),
)


def question_options(command: _F) -> _F:
    """Give a click command the prompt and every option that `read_question` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True)
class Question:
    """prompt: a text, or chat messages; options: keyword arguments beside it, if given."""

    prompt: str | list[Mapping[str, Any]]
    options: dict[str, Any]


def read_question(
    *,
    prompt: str | None,
    messages: Path | None,
    tools: Path | None,
    response_format: str | None,
    reasoning: str | None,
    raw: bool,
    no_constrain: bool,
    system: str | None,
    max_tokens: int | None,
    stop: tuple[str, ...],
    **sampling: Any,
) -> Question:
    """Raises click.UsageError for what does not go together, GptOssError for a bad value."""
    if raw and (messages or tools or response_format or reasoning or system or no_constrain):
        raise click.UsageError("--raw completes a text: it takes no Harmony options beside it")
    if not all(stop):
        raise click.UsageError("--stop is empty")
    sampling = _given(**sampling)
    if "top_logprobs" in sampling:
        sampling["logprobs"] = True
    Sampling(**sampling)  # checks them
    options = sampling | _given(system=system, max_tokens=max_tokens, stop=stop)
    if raw:
        return Question(_prompt(prompt, exact=True), options | {"raw": True})
    if no_constrain:
        options["constrain_headers"] = False
    conversation = _conversation(messages) if messages else {}
    if tools:
        conversation["tools"] = _checked_tools(tools, _read_json(tools))
    if response_format:
        conversation["response_format"] = _response_format(response_format)
    if reasoning:
        conversation["reasoning"] = reasoning
    past = conversation.pop("messages", [])
    options |= conversation
    if not messages:
        return Question(_prompt(prompt), options)
    if prompt is not None:
        past = [*past, {"role": "user", "content": _prompt(prompt)}]
    return Question(past, options)


def _given(**options: Any) -> dict[str, Any]:
    return {k: v for k, v in options.items() if v is not None and v is not False and v != ()}


def _prompt(prompt: str | None, *, exact: bool = False) -> str:
    """PROMPT, or stdin; without the newline that ends a piped line unless `exact`."""
    if prompt is None and sys.stdin is not None and sys.stdin.isatty():
        raise click.UsageError('give a PROMPT, pipe one in, or use "-" to type it')
    text = prompt
    if text is None or text == "-":
        try:
            text = "" if sys.stdin is None else sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise MessageError(f"stdin: byte {error.start} is not UTF-8 text") from error
        text = text if exact else text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise click.UsageError("the prompt is empty")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise MessageError(f"the prompt is not valid text: {shown(text)}")
    return text


def _conversation(path: Path) -> dict[str, Any]:
    """messages, and tools, response_format and reasoning if the file has them."""
    value = _read_json(path)
    if isinstance(value, list):
        value = {"messages": value}
    if not isinstance(value, dict) or "messages" not in value:
        raise MessageError(f"{path}: holds neither a list nor an object with messages")
    for key in value:
        if key not in _CONVERSATION_KEYS:
            known = ", ".join(_CONVERSATION_KEYS)
            raise MessageError(f"{path}: {shown(key)} is not understood, only {known}")
    result = {"messages": _checked_messages(path, value["messages"])}
    if value.get("tools") is not None:
        result["tools"] = _checked_tools(path, value["tools"])
    if value.get("response_format") is not None:
        result["response_format"] = _checked_format(path, value["response_format"])
    if (effort := value.get("reasoning_effort")) is not None:
        if effort not in _EFFORTS:
            raise MessageError(
                f"{path}: reasoning_effort is {shown(effort)}, but must be low, medium or high"
            )
        result["reasoning"] = effort
    return result


def _response_format(option: str) -> dict[str, Any]:
    """The word json, or a file with a response format or a bare JSON schema."""
    if option == "json":
        return {"type": "json_object"}
    path = Path(option)
    value = _read_json(path)
    if isinstance(value, dict) and _is_schema(value):
        value = {"type": "json_schema", "json_schema": {"name": path.stem, "schema": value}}
    return _checked_format(path, value)


def _is_schema(value: Mapping[str, Any]) -> bool:
    kind = value.get("type")
    return kind is None or isinstance(kind, list) or kind in _SCHEMA_TYPES


def _checked_messages(path: Path, messages: Any) -> Any:
    from gptoss_mlx.harmony.messages import read_messages

    if not _is_list(path, "messages", messages):
        raise MessageError(f"{path}: holds no messages")
    _naming(path, lambda: read_messages(messages, None))
    return messages


def _checked_tools(path: Path, tools: Any) -> Any:
    from gptoss_mlx.harmony.tools import read_tools

    _is_list(path, "tools", tools)
    _naming(path, lambda: read_tools(tools))
    return tools


def _checked_format(path: Path, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise MessageError(f"{path}: a response format is an object, not {shown(value)}")
    if value.get("type") not in _FORMATS:
        kinds = ", ".join(_FORMATS)
        raise MessageError(f"{path}: response format {shown(value.get('type'))} is none of {kinds}")
    return value


def _is_list(path: Path, noun: str, value: Any) -> bool:
    """Whether there is something in the list. Raises MessageError if it is none."""
    if not isinstance(value, list):
        raise MessageError(f"{path}: expected a list of {noun}, not {shown(value)}")
    return bool(value)


def _naming(path: Path, check: Callable[[], object]) -> None:
    """Run a check; its MessageError then names the file as well."""
    try:
        check()
    except MessageError as error:
        raise MessageError(f"{path}: {error}") from error


def _read_json(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_LIMIT + 1)
    except OSError as error:
        raise MessageError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > FILE_LIMIT:
        raise MessageError(f"{path}: is larger than {FILE_LIMIT} bytes, the limit for such a file")
    try:
        return json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise MessageError(f"{path}: is not valid JSON: {error}") from error
