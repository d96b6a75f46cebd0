"""Sealed calls: what a call of the server's tools was and gave, opaque to clients that keep their
conversations and send it back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from gptoss_mlx.server.history import JSON
from gptoss_mlx.server.openai.output_items import WrittenCall
from gptoss_mlx.server.openai.sealed_reasoning import seal, unseal
from gptoss_mlx.spec.recipients import BUILTIN

UNKNOWN = "[what it printed is not known any more]"
"""What the model reads of code whose output its client does not give back."""

_RECIPIENTS = {
    "code_interpreter_call": BUILTIN["python"],
    "web_search_call": BUILTIN["browser"],
}


def seal_call(call: WrittenCall) -> str:
    return seal(json.dumps(call))


def served_call(item: JSON) -> WrittenCall | None:
    """The call of an item that a client gives back; None if there is nothing to read of it."""
    sealed = item.get("encrypted_content")
    if isinstance(sealed, str) and (call := _unsealed(sealed)) is not None:
        return call if call["recipient"] in _RECIPIENTS[item["type"]] else None
    code = item.get("code")
    if not isinstance(code, str):
        return None
    return {"recipient": "python", "arguments": code, "result": "".join(_logs(item)) or UNKNOWN}


def _unsealed(sealed: str) -> WrittenCall | None:
    try:
        call = json.loads(unseal(sealed) or "")
    except (ValueError, RecursionError):
        return None
    keys = ("recipient", "arguments", "result")
    if not isinstance(call, Mapping) or not all(isinstance(call.get(key), str) for key in keys):
        return None
    return {
        "recipient": call["recipient"],
        "arguments": call["arguments"],
        "result": call["result"],
    }


def _logs(item: JSON) -> Iterator[str]:
    outputs = item.get("outputs")
    for one in outputs if isinstance(outputs, list) else ():
        if isinstance(one, Mapping) and isinstance(one.get("logs"), str):
            yield one["logs"]
