"""The writers of a response: which one makes the item of a message, by what the message is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from gptoss_mlx.engine.deltas import Delta
from gptoss_mlx.harmony.tokenizer import Tokenizer
from gptoss_mlx.server.openai.call_writers import CallWriter, CodeCallWriter, SearchCallWriter
from gptoss_mlx.server.openai.item_writers import (
    CustomCallWriter,
    FunctionCallWriter,
    ItemPlace,
    ItemWriter,
    MessageWriter,
    ReasoningWriter,
)
from gptoss_mlx.server.openai.mcp_writers import McpCallWriter, McpRequestWriter
from gptoss_mlx.server.openai.output_items import Phase
from gptoss_mlx.server.openai.response_tools import Toolbox
from gptoss_mlx.server.openai.served_calls import ServedCalls

Writer: TypeAlias = ItemWriter | CallWriter | McpRequestWriter

RUN = (CodeCallWriter, SearchCallWriter, McpCallWriter)
"""Writers of calls that the server runs."""


@dataclass(frozen=True)
class Wanted:
    """What a response is to have beside its text."""

    logprobs: bool = False
    summary: bool = False
    sealed: bool = False


@dataclass(frozen=True)
class Writers:
    """calls: those that the server runs; None where it runs none."""

    tools: Toolbox
    calls: ServedCalls | None
    wanted: Wanted
    tokenizer: Tokenizer

    def new(self, place: ItemPlace, delta: Delta) -> Writer:
        """The writer of the message that a delta begins. Raises GptOssError."""
        wanted, served = self.wanted, self.calls
        if delta.part == "reasoning":
            return ReasoningWriter(place, wanted.summary, wanted.sealed)
        if served is not None and delta.part == "call" and served.takes(delta.recipient):
            return served.writer(place, delta.recipient)
        if delta.part == "call":
            tool = self.tools.called(delta.name)
            return (CustomCallWriter if tool.is_custom else FunctionCallWriter)(place, tool)
        phase: Phase = "commentary" if delta.part == "preamble" else "final_answer"
        tokenizer = self.tokenizer if wanted.logprobs else None
        annotator = None if served is None else served.annotator(phase)
        return MessageWriter(place, phase, tokenizer, annotator)
