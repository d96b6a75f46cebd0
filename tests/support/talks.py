"""A conversation whose model says what it is told to, and whose answers are kept as text."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptoss_mlx.cli.asked_tools import AskedTools
from gptoss_mlx.cli.chat.archive import Archive
from gptoss_mlx.cli.chat.chat_tools import ChatTools
from gptoss_mlx.cli.chat.conversation import Talk
from gptoss_mlx.cli.chat.transcript import Transcript
from gptoss_mlx.cli.chat.view import PlainView
from gptoss_mlx.cli.terminal import Output
from gptoss_mlx.tools.approval import Rule
from gptoss_mlx.tools.guard.guard import Guard
from tests.support.scripted_model import AGAIN, ANALYSIS, FINAL, Scripted


def answer(text: str, reasoning: str = "") -> str:
    """What a model writes to say this."""
    thought = f"{ANALYSIS}{reasoning}{AGAIN}" if reasoning else ""
    return f"{thought}{FINAL}{text}<|return|>"


class Talking:
    """talk: the conversation; out, err: what it wrote.

    rules, opened: of its tools. guard: judges it.
    """

    def __init__(
        self,
        folder: Path,
        *replies: str,
        context: int = 4096,
        rules: Mapping[str, Rule] | None = None,
        opened: Any = None,
        guard: Guard | None = None,
        **options: Any,
    ) -> None:
        self.scripted = Scripted(*replies, context=context)
        self.scripted.engine.name = "scripted"
        self.out, self.err = io.StringIO(), io.StringIO()
        out, err = Output(self.out), Output(self.err)
        self.talk = Talk(
            self.scripted.engine,
            options.pop("transcript", Transcript()),
            new_view=lambda: PlainView(out, err, runs=bool(rules)),
            out=out,
            err=err,
            tools=ChatTools(self.scripted.engine, AskedTools(rules or {}), opened, guard),
            archive=Archive(folder / "conversations"),
            **options,
        )

    @property
    def said(self) -> str:
        """What was said since it was asked last."""
        text = self.err.getvalue()
        self.err.seek(0)
        self.err.truncate()
        return text

    @property
    def prompts(self) -> list[str]:
        """The prompts that the model has read, as text."""
        encoding = self.scripted.engine.tokenizer.harmony
        assert encoding is not None
        return [encoding.decode(ids) for _, _, ids in self.scripted.samplings]
