"""Turns options, prompt and files of a command into the arguments of `Engine.stream`.

Everything that can be refused without the model is refused here, before it is loaded.
"""

from __future__ import annotations

import json
import os
import select
import stat
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from gptoss_mlx.cli.constraint import CONSTRAINT_OPTIONS, take_constraint
from gptoss_mlx.cli.options import EFFORTS, INSTRUCTION_OPTIONS, SAMPLING_OPTIONS
from gptoss_mlx.errors import MessageError, SamplingError
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.spec.sampling import Sampling

FILE_LIMIT = 64 << 20
"""Bytes of a JSON file."""

TEXT_LIMIT = 16 << 20
"""Bytes of a prompt: 131072 tokens, the longest context, of at most 128 bytes each."""

PATIENCE = 5.0
"""Seconds to wait for text from a pipe beside a PROMPT. One that is silent for longer is taken for
one nobody writes to, inherited from a program that started this one."""

_CONVERSATION_KEYS = ("messages", "tools", "response_format", "reasoning_effort")
_FORMATS = ("text", "json_object", "json_schema")
_SCHEMA_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_STDIN = Path("-")
_F = TypeVar("_F", bound=Callable[..., Any])

_FILE = click.Path(path_type=Path)

_OPTIONS = (
    click.argument("prompt", required=False),
    click.option(
        "--messages", type=_FILE, help='JSON file of chat messages, "-" is stdin. PROMPT is added.'
    ),
    *INSTRUCTION_OPTIONS,
    click.option("--tools", type=_FILE, help="JSON file: a list of OpenAI function tools."),
    click.option(
        "--response-format",
        metavar="FILE|json",
        help='JSON file: a response format or JSON schema; or the word "json".',
    ),
    *CONSTRAINT_OPTIONS,
    click.option("--raw", is_flag=True, help="Continue the text as it is, without Harmony."),
    click.option("--no-constrain", is_flag=True, help="Let the model write any Harmony header."),
    *SAMPLING_OPTIONS,
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
    """The arguments of `Engine.stream`.

    prompt: a text, or chat messages; options: keyword arguments beside it, if given.
    """

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
    max_time: float | None,
    stop: tuple[str, ...],
    **sampling: Any,
) -> Question:
    """Check the options and read the files.

    Raises click.UsageError for bad values and options that exclude each other, GptOssError for a
    bad file.
    """
    if raw and (messages or tools or response_format or reasoning or system or no_constrain):
        raise click.UsageError("--raw completes a text: it takes no Harmony options beside it")
    if not all(stop):
        raise click.UsageError("--stop is empty")
    options = take_constraint(sampling, raw=raw, no_constrain=no_constrain)
    sampling = _given(**sampling)
    if "top_logprobs" in sampling:
        sampling["logprobs"] = True
    try:
        Sampling(**sampling)
    except SamplingError as error:
        raise click.UsageError(str(error)) from error
    options |= sampling | _given(system=system, max_tokens=max_tokens, max_time=max_time, stop=stop)
    if raw:
        return Question(_prompt(prompt, exact=True, alone=True), options | {"raw": True})
    if no_constrain:
        options["constrain_headers"] = False
    if messages == _STDIN and prompt == "-":
        raise click.UsageError("stdin cannot be both the messages and the PROMPT")
    conversation = _conversation(messages) if messages else {}
    if tools:
        conversation["tools"] = _checked_tools(tools, _read_json(tools))
    if response_format:
        conversation["response_format"] = _response_format(response_format)
    if reasoning:
        conversation["reasoning"] = reasoning
    past = conversation.pop("messages", [])
    options |= conversation
    if messages is None:
        return Question(_prompt(prompt), options)
    if prompt is not None:
        past = [*past, {"role": "user", "content": _prompt(prompt, alone=messages == _STDIN)}]
    return Question(past, options)


def _given(**options: Any) -> dict[str, Any]:
    return {k: v for k, v in options.items() if v is not None and v is not False and v != ()}


def _prompt(prompt: str | None, *, exact: bool = False, alone: bool = False) -> str:
    """The prompt's text: PROMPT, a blank line and what comes through stdin; or one of the two.

    alone: stdin is not read beside a PROMPT. exact: stdin keeps the newline that ends a piped line.
    """
    if prompt is None and sys.stdin is not None and sys.stdin.isatty():
        raise click.UsageError('give a PROMPT, pipe one in, or use "-" to type it')
    if prompt is None or prompt == "-":
        text = _piped(exact)
    elif alone or not _comes_through_stdin():
        text = prompt
    else:
        text = "\n\n".join(part for part in (prompt, _piped()) if part)
    if not text:
        raise click.UsageError("the prompt is empty")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise MessageError(f"the prompt is not valid text: {shown(text)}")
    return text


def _piped(exact: bool = False) -> str:
    data = _read_stdin(TEXT_LIMIT, "a prompt")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MessageError(f"stdin: byte {error.start} is not UTF-8 text") from error
    return text if exact else text.removesuffix("\n").removesuffix("\r")


def _comes_through_stdin() -> bool:
    """Whether there is text for a PROMPT: in a file, or in a pipe that does not stay silent."""
    try:
        number = sys.stdin.fileno()
        mode = os.fstat(number).st_mode
    except (AttributeError, OSError, ValueError):  # there is no stdin, or none with a number
        return False
    if stat.S_ISREG(mode):
        return True
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):  # a terminal or /dev/null
        return False
    return _is_ready(number)


def _is_ready(number: int) -> bool:
    """Whether a pipe has text or is closed within PATIENCE."""
    if not hasattr(select, "poll"):  # Windows, whose pipes cannot be waited for
        return True
    poll = select.poll()
    poll.register(number, select.POLLIN)
    if poll.poll(PATIENCE * 1000):
        return True
    click.echo(
        f"note: stdin was silent for {PATIENCE:g} s and is not read; `-` instead of a PROMPT waits"
        " for it, </dev/null closes it",
        err=True,
    )
    return False


def _read_stdin(limit: int, what: str) -> bytes:
    data = b"" if sys.stdin is None else sys.stdin.buffer.read(limit + 1)
    if len(data) > limit:
        raise MessageError(f"stdin: more than {limit} bytes, the limit for {what}")
    return data


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
        if effort not in EFFORTS:
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
    """Whether the list has elements. Raises MessageError if it is no list."""
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
    """The value in a file, which may be a pipe as a shell's <(...) gives; "-" is stdin."""
    if path == _STDIN:
        data, path = _read_stdin(FILE_LIMIT, "JSON"), Path("stdin")
    else:
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
