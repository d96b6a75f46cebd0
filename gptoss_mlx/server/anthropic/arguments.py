"""A call's arguments as Anthropic's clients need them: always one JSON object, however they were
written, and streamed member by member."""

from __future__ import annotations

import json
from collections.abc import Iterator

from gptoss_mlx.server.replies import encoded

UNREAD = "arguments"
"""The member under which arguments that are no object go out."""


class Arguments:
    """Takes the text of one call's arguments, and gives the text of an object.

    A member is given once it is whole, so that the object can be closed where the model breaks off
    or errs.
    """

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._member: list[str] = []  # letters of the member under way
        self._depth = 0  # objects and lists that are open
        self._in_string = self._is_escaped = False
        self._is_over = self._has_given = False

    @property
    def text(self) -> str:
        """As it was written."""
        return "".join(self._pieces)

    def push(self, text: str) -> str:
        """What can be given now."""
        self._pieces.append(text)
        return "".join(self._members(text))

    def finish(self) -> str:
        """The rest."""
        text = self.text.strip()
        if text and not text.startswith("{"):
            return encoded({UNREAD: text}).decode()
        return "}" if self._has_given else "{}"

    def _members(self, text: str) -> Iterator[str]:
        for letter in text:
            if self._is_over:
                return
            if not self._depth and letter not in "{ \t\r\n":  # no object
                self._is_over = True
            elif not self._parts(letter):
                self._member.append(letter)
            elif member := self._end_member(letter):
                yield ("," if self._has_given else "{") + member
                self._has_given = True

    def _parts(self, letter: str) -> bool:
        """Whether this letter begins, parts or ends the members of the outermost object."""
        if self._in_string:
            self._in_string = self._is_escaped or letter != '"'
            self._is_escaped = letter == "\\" and not self._is_escaped
            return False
        if letter == '"':
            self._in_string = True
        elif letter in "{[":
            self._depth += 1
            return self._depth == 1
        elif letter in "}]":
            self._depth -= 1
            return self._depth == 0
        return letter == "," and self._depth == 1

    def _end_member(self, letter: str) -> str:
        """The member that this letter ends; "" for none, and for one that cannot be sent on."""
        member = "".join(self._member)
        self._member.clear()
        if not _is_sound(member):
            self._is_over = True
            return ""
        self._is_over = letter == "}"
        return member if member.strip() else ""


def _is_sound(member: str) -> bool:
    """Whether an object of this member alone is JSON that can be sent on."""
    try:
        encoded(json.loads("{" + member + "}"))
    except (ValueError, RecursionError):  # also a lone surrogate, and a number without bound
        return False
    return True
