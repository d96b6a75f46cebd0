"""Tools that a server runs in tests: one that does what a test says, and the real ones."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema

from gptoss_mlx.server.containers import Containers
from gptoss_mlx.server.policy import Policy
from gptoss_mlx.server.toolkit import Toolkit
from gptoss_mlx.tools.browser.browser import BrowserTool
from gptoss_mlx.tools.browser.documents.documents import Documents
from gptoss_mlx.tools.python.tool import PythonTool
from gptoss_mlx.tools.tool import Outcome, never
from tests.root import ROOT
from tests.support.scripted_model import AGAIN, ANALYSIS, FINAL, Scripted
from tests.support.served import LONG, Served, serving

CODE = "<|channel|>analysis to=python code<|message|>{}<|call|>"
BROWSE = "<|channel|>analysis to=browser.{} code<|message|>{}<|call|>"
DONE = f"{FINAL}Done.<|return|>"
THOUGHT = f"{ANALYSIS}Compute.{AGAIN}"
PYTHON = {"type": "code_interpreter", "container": {"type": "auto"}}
SEARCH = {"type": "web_search"}
CALLED = (
    "<|start|>assistant to=python<|channel|>analysis code<|message|>{}<|call|>"
    "<|start|>python to=assistant<|channel|>analysis<|message|>{}<|end|>"
)
FOUND = [BROWSE.format("search", '{"query": "ferry"}'), BROWSE.format("open", '{"id": 0}')]
OUTPUTS = {"include": ["code_interpreter_call.outputs"]}
STATELESS = {"include": ["reasoning.encrypted_content"], "store": False}
HARBOUR = "# The harbour\n\nThe ferry leaves at seven.\n"

_SCHEMAS: dict[str, Any] = json.loads(
    (ROOT / "tests" / "server" / "data" / "openai-paths.json").read_text()
)["components"]
_NULL = ("user", "usage")  # fields that OpenAI's own responses have as null as well


class FakePython:
    """A python that keeps its calls, and gives what `give` makes of each."""

    name = "python"
    offers: Sequence[Mapping[str, object]] = ({"type": "python"},)

    def __init__(
        self, folder: Path, give: Callable[[str], str | Outcome], log: list[tuple[str, str]]
    ) -> None:
        self.folder, self._give, self._log = folder, give, log

    def call(self, recipient: str, text: str, cancel: Callable[[], bool] = never) -> Outcome:
        self._log.append((self.folder.name, text))
        given = self._give(text)
        return given if isinstance(given, Outcome) else Outcome(given)

    def close(self) -> None:
        self._log.append((self.folder.name, "closed"))


class HangingPython(FakePython):
    """A call ends when it is told to. begun, ended: a call has; both can be waited for."""

    begun = threading.Event()
    ended = threading.Event()

    def call(self, recipient: str, text: str, cancel: Callable[[], bool] = never) -> Outcome:
        self.begun.set()
        pause = threading.Event()
        for _ in range(int(LONG / 0.01)):
            if cancel():
                self.ended.set()
                return Outcome("[interrupted by the user]", failed=True)
            pause.wait(0.01)
        raise AssertionError("nobody ended the call")


def hanging() -> type[HangingPython]:
    """A class of its own, whose events no other test sets."""
    return type(
        "Hanging", (HangingPython,), {"begun": threading.Event(), "ended": threading.Event()}
    )


def fake_kit(
    give: Callable[[str], str | Outcome] = str.upper,
    log: list[tuple[str, str]] | None = None,
    kind: type[FakePython] = FakePython,
    **options: Any,
) -> Toolkit:
    entries = [] if log is None else log
    return Toolkit({"python": lambda folder, _: kind(folder, give, entries)}, **options)


def python_kit(**options: Any) -> Toolkit:
    return Toolkit({"python": lambda folder, _: PythonTool(folder)}, **options)


@contextmanager
def browser_kit(folder: Path, text: str = HARBOUR, name: str = "harbour.md") -> Iterator[Toolkit]:
    """The browser over a folder with one document."""
    (folder / name).write_text(text, encoding="utf-8")
    source = Documents(folder, lambda done, total: None)
    try:
        yield Toolkit({"browser": lambda _, encoding: BrowserTool(source, encoding)})
    finally:
        source.close()


@contextmanager
def tooled(
    scripted: Scripted, kit: Toolkit, policy: Policy | None = None, **limits: Any
) -> Iterator[Served]:
    """A server that has tools."""
    with serving(scripted, policy=policy, containers=Containers(kit, **limits)) as served:
        yield served


def codes(log: list[tuple[str, str]]) -> list[str]:
    """What a fake python has run."""
    return [text for _, text in log if text != "closed"]


def prompts(scripted: Scripted) -> list[str]:
    """What the model read before each turn."""
    return [scripted.engine.tokenizer.harmony.decode(ids) for _, _, ids in scripted.samplings]


def check_documented(events: Sequence[Mapping[str, Any]]) -> None:
    """Every event is as OpenAI's own document has it, with the items in it."""
    for event in events:
        (found,) = (
            schema
            for schema in _SCHEMAS["schemas"].values()
            if schema.get("properties", {}).get("type", {}).get("enum") == [event["type"]]
            and "sequence_number" in schema["properties"]
        )
        if "response" in event:
            given = event["response"].items()
            response = {k: v for k, v in given if k not in _NULL or v is not None}
            event = {**event, "response": response}
        jsonschema.validate(event, {**found, "components": _SCHEMAS})
