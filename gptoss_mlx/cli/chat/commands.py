"""What a person may type after a slash, and what it does."""

from __future__ import annotations

import base64
import datetime
import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from types import MappingProxyType

from gptoss_mlx.cli.chat.archive import Archive, Saved
from gptoss_mlx.cli.chat.chat_tools import RULES
from gptoss_mlx.cli.chat.conversation import Talk
from gptoss_mlx.cli.chat.transcript import NUMBERS, Transcript, plain_text
from gptoss_mlx.cli.chat.view import counted
from gptoss_mlx.cli.options import EFFORTS
from gptoss_mlx.errors import GptOssError, MessageError, SessionError
from gptoss_mlx.files.atomic import write_atomic
from gptoss_mlx.files.jsonfile import shown
from gptoss_mlx.files.paths import expanded
from gptoss_mlx.files.regular import is_named, read_regular

FILE_LIMIT = 1 << 20
"""Bytes of a file that is added to a message."""

COPY_LIMIT = 74_994
"""Bytes of base64 that terminals commonly take into the clipboard."""


@dataclass(frozen=True)
class SlashCommand:
    """run: takes the conversation and what stands after the name. words: what may stand there."""

    usage: str
    help: str
    run: Callable[[Talk, str], None]
    words: Callable[[Talk], Iterable[str]] = lambda talk: ()


def begins_command(line: str) -> bool:
    """Whether a line is one: it begins with a slash, and its first word has no other."""
    first = line.split(maxsplit=1)[0] if line.strip() else ""
    return line.startswith("/") and first.count("/") == 1 and first != "/"


def run_command(talk: Talk, line: str) -> None:
    """Raises GptOssError for one that is unknown or cannot be obeyed."""
    word, _, argument = line.strip().partition(" ")
    if "\n" in word:
        word, _, argument = line.strip().partition("\n")
    name = _OTHER_NAMES.get(word[1:], word[1:])
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1, 0.5)
        hint = f"did you mean /{near[0]}?" if near else "/help lists what there is"
        raise MessageError(f"{shown(word)} is no command: {hint}")
    COMMANDS[name].run(talk, argument.strip())


def listing(archive: Archive) -> str:
    """The saved conversations as lines, the one used last first."""
    lines = []
    for one in archive.listed():
        used = datetime.datetime.fromtimestamp(one.used).strftime("%Y-%m-%d %H:%M")
        said = one.damage or f"{counted(one.turns, 'turn'):>9}  {one.title[:60]}"
        lines.append(f"{used}  {one.name:32}  {said}")
    return "\n".join(lines or [f"no conversation is saved in {archive.folder}"])


def _help(talk: Talk, argument: str) -> None:
    width = max(len(command.usage) for command in COMMANDS.values())
    lines = [f"{command.usage:{width}}  {command.help}" for command in COMMANDS.values()]
    keys = (
        "Enter sends; Alt-Enter, Ctrl-J or a \\ at the end gives a new line.",
        "Ctrl-C stops an answer; twice at the prompt, or Ctrl-D, ends. A message that begins",
        "with a slash is written with two.",
    )
    talk.say("\n".join([*lines, "", *keys]))


def _new(talk: Talk, argument: str) -> None:
    talk.begin(replace(talk.transcript, messages=()))
    talk.say("a new conversation")


def _system(talk: Talk, argument: str) -> None:
    if not argument:
        talk.say(talk.transcript.system or "no instructions; /system TEXT gives some")
        return
    system = None if argument == "off" else argument
    talk.change(replace(talk.transcript, system=system))
    talk.say("no instructions" if system is None else "instructions set")


def _reasoning(talk: Talk, argument: str) -> None:
    if not argument:
        talk.say(talk.transcript.last_reasoning or "no answer has reasoning")
        return
    if argument not in EFFORTS:
        raise MessageError(f"reasoning is {shown(argument)}, but must be low, medium or high")
    talk.change(replace(talk.transcript, reasoning=argument))
    talk.say(f"reasoning {argument}")


def _set(talk: Talk, argument: str) -> None:
    name, _, text = argument.partition(" ")
    name, text = name.replace("-", "_"), text.strip()
    if not name:
        options = talk.transcript.options
        lines = [f"{name:20} {value}" for name, value in options.items()]
        talk.say("\n".join(lines or ["nothing is set: the model's own defaults apply"]))
        return
    if name not in NUMBERS:
        raise MessageError(f"{shown(name)} cannot be set, only {', '.join(NUMBERS)}")
    value = None
    if text != "default":
        try:
            value = NUMBERS[name](text)
        except ValueError as error:
            kind = "a whole number" if NUMBERS[name] is int else "a number"
            raise MessageError(f"{name} is {shown(text)}, but must be {kind} or default") from error
    talk.change(talk.transcript.with_option(name, value))
    talk.say(f"{name} {'default' if value is None else value}")


def _retry(talk: Talk, argument: str) -> None:
    _need_turn(talk)
    talk.ask_again()


def _undo(talk: Talk, argument: str) -> None:
    text = _need_turn(talk)
    talk.change(talk.transcript.without_last_turn())
    talk.say(f"taken back: {_short(text)}")


def _edit(talk: Talk, argument: str) -> None:
    text = _need_turn(talk)
    edited = (talk.edit(text) or "").removesuffix("\n")
    if not edited.strip() or edited == text:
        talk.say("the message is unchanged")
        return
    talk.ask_again(edited)


def _copy(talk: Talk, argument: str) -> None:
    answer = talk.transcript.last_answer
    text = "" if answer is None else plain_text(answer)
    if not text:
        raise MessageError("there is no answer to copy")
    if not talk.err.terminal:
        raise MessageError("there is no terminal whose clipboard could take it")
    data = base64.b64encode(text.encode()).decode()
    if len(data) > COPY_LIMIT:
        raise MessageError(
            f"the answer has {len(data):,} bytes of base64, but a terminal's clipboard takes"
            f" {COPY_LIMIT:,}; /export writes a file"
        )
    talk.err.control(f"\x1b]52;c;{data}\x07")
    talk.say(f"{counted(len(text), 'character')} sent to the terminal's clipboard")


def _save(talk: Talk, argument: str) -> None:
    archive, name = talk.archive, _name(argument, "/save NAME")
    if archive.holds(name) and (talk.saved is None or talk.saved.name != name):
        raise SessionError(f"{name} is another conversation: /delete it before, or take a new name")
    before, talk.saves = talk.saved, True
    own = before is not None and before.name == name
    talk.saved = archive.write(before if own and before else Saved(name), talk.transcript)
    talk.say(f"saved as {talk.saved.name}")


def _load(talk: Talk, argument: str) -> None:
    transcript, saved = talk.archive.read(_name(argument, "/load NAME"))
    talk.begin(transcript, saved)
    talk.say(f"{saved.name}: {counted(len(transcript.turns), 'turn')}")


def _sessions(talk: Talk, argument: str) -> None:
    talk.say(listing(talk.archive))


def _delete(talk: Talk, argument: str) -> None:
    name = _name(argument, "/delete NAME")
    if talk.saved is not None and talk.saved.name == name:
        raise SessionError(f"{name} is this conversation: /new begins another, then delete it")
    talk.archive.delete(name)
    talk.say(f"{name} is deleted")


def _export(talk: Talk, argument: str) -> None:
    if not talk.transcript.messages:
        raise MessageError("there is no message to export")
    path = expanded(_name(argument, "/export FILE"))
    if is_named(path):
        raise MessageError(f"{path}: exists; give another name")
    text = json.dumps(talk.transcript.exported(), ensure_ascii=False, indent=1) + "\n"
    try:
        write_atomic(path, text.encode("utf-8", "replace"))
    except OSError as error:
        raise MessageError(f"{path}: cannot be written: {error.strerror}") from error
    talk.say(f"{path}: {counted(len(talk.transcript.messages), 'message')}")


def _file(talk: Talk, argument: str) -> None:
    path = expanded(_name(argument, "/file PATH"))
    try:
        data = read_regular(path, FILE_LIMIT)
    except OSError as error:
        raise MessageError(f"{path}: cannot be read: {error.strerror}") from error
    text = None
    with suppress(UnicodeDecodeError):
        text = data.decode("utf-8-sig")
    if text is None or "\0" in text:
        raise MessageError(f"{path}: is not UTF-8 text")
    fence = "```"
    while fence in text:
        fence += "`"
    body = f"{path.name}:\n\n{fence}\n{text.removesuffix(chr(10))}\n{fence}"
    talk.attached = [*talk.attached, (path.name, body)]
    talk.say(f"{path.name}, {counted(len(data), 'byte')}, goes with the next message")


def _tools(talk: Talk, argument: str) -> None:
    tools = talk.tools
    if not tools:
        raise MessageError("there are no tools: gptoss-mlx chat --tool python gives one")
    if argument:
        name, _, rule = argument.partition(" ")
        tools.change(name, rule.strip())
    talk.say(tools.listing())


def _context(talk: Talk, argument: str) -> None:
    most, used = talk.engine.context, talk.used
    rows = [*talk.parts().items(), ("used", used), ("free", max(0, most - used)), ("context", most)]
    lines = [f"{name:16}{n:10,} tokens {100 * n / most:5.1f} %" for name, n in rows]
    talk.say("\n".join(lines))


def _stats(talk: Talk, argument: str) -> None:
    from gptoss_mlx.cli.report import table

    if talk.finish is None:
        raise MessageError("there is no answer yet")
    talk.say(table(talk.finish, None, talk.engine.plan, talk.engine.stats()).rstrip("\n"))


def _trim(talk: Talk, argument: str) -> None:
    turns = len(talk.transcript.turns)
    if turns < 2:
        raise MessageError("there is no turn but the last, which stays")
    if argument and not (argument.isdecimal() and 0 < int(argument[:9]) < turns):
        raise MessageError(f"trim is {shown(argument)}, but must be from 1 to {turns - 1}")
    before, count = talk.transcript, int(argument or 1)
    trimmed = before.without_oldest(count)
    while not argument and count < turns - 1 and _takes(talk, trimmed) > talk.engine.context // 2:
        count += 1
        trimmed = before.without_oldest(count)
    talk.change(trimmed)
    used, most = talk.used, talk.engine.context
    talk.say(f"dropped {counted(count, 'turn')}; {used:,} of {most:,} tokens are used")


def _takes(talk: Talk, transcript: Transcript) -> int:
    before, talk.transcript = talk.transcript, transcript
    try:
        return talk.used
    finally:
        talk.transcript = before


def _quit(talk: Talk, argument: str) -> None:
    talk.ended = True


def _need_turn(talk: Talk) -> str:
    """The last message. Raises MessageError if there is none."""
    text = talk.transcript.last_message
    if text is None:
        raise MessageError("there is no message yet")
    return text


def _name(argument: str, usage: str) -> str:
    if not argument:
        raise MessageError(f"write {usage}")
    return argument


def _short(text: str) -> str:
    line = " ".join(text[:200].split())
    return line if len(line) <= 60 else f"{line[:57]}..."


def _saved_names(talk: Talk) -> list[str]:
    with suppress(GptOssError, OSError):
        return talk.archive.names()
    return []


COMMANDS: Mapping[str, SlashCommand] = MappingProxyType(
    {
        "help": SlashCommand("/help", "this list", _help),
        "new": SlashCommand("/new", "begin a new conversation", _new),
        "system": SlashCommand("/system [TEXT|off]", "show or set the instructions", _system),
        "reasoning": SlashCommand(
            "/reasoning [low|medium|high]",
            "show the last reasoning, or set how long to think",
            _reasoning,
            lambda talk: EFFORTS,
        ),
        "set": SlashCommand(
            "/set [NAME VALUE|default]",
            "show or set a number, such as temperature",
            _set,
            lambda talk: NUMBERS,
        ),
        "retry": SlashCommand("/retry", "answer the last message anew", _retry),
        "undo": SlashCommand("/undo", "take the last message and its answer back", _undo),
        "edit": SlashCommand("/edit", "change the last message in $EDITOR", _edit),
        "file": SlashCommand("/file PATH", "add a text file to the next message", _file),
        "tools": SlashCommand(
            "/tools [NAME allow|ask|deny]",
            "list the tools, or say which calls are run",
            _tools,
            lambda talk: [f"{name} {rule}" for name in talk.tools.rules for rule in RULES],
        ),
        "copy": SlashCommand("/copy", "copy the last answer into the clipboard", _copy),
        "context": SlashCommand("/context", "what takes the context", _context),
        "stats": SlashCommand("/stats", "counts and times of the last answer", _stats),
        "trim": SlashCommand(
            "/trim [N]", "drop the N oldest turns, or until half the context is free", _trim
        ),
        "save": SlashCommand("/save NAME", "save under a name", _save),
        "load": SlashCommand("/load NAME", "go on with a saved one", _load, _saved_names),
        "sessions": SlashCommand("/sessions", "list those saved", _sessions),
        "delete": SlashCommand("/delete NAME", "delete a saved one", _delete, _saved_names),
        "export": SlashCommand("/export FILE", "write JSON for generate --messages", _export),
        "quit": SlashCommand("/quit", "end", _quit),
    }
)

_OTHER_NAMES = MappingProxyType({"exit": "quit", "bye": "quit", "q": "quit", "?": "help"})
