"""The catalogue of models: `/api/tags`, `/api/show`, `/api/ps`, `/api/version` and `/api/pull`."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any, NotRequired

from pydantic import StrictBool
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from gptoss_mlx.models.names import ALIASES
from gptoss_mlx.server.bodies import read_body
from gptoss_mlx.server.facts import Facts, facts_of
from gptoss_mlx.server.ollama.fields import NamedModel
from gptoss_mlx.server.ollama.shape import NDJSON, SECOND, line, moment
from gptoss_mlx.server.registry import ServedModel
from gptoss_mlx.server.replies import FrameStream, JSONReply
from gptoss_mlx.server.service import service_of
from gptoss_mlx.spec.config import ModelConfig

LEVEL = "0.13.5"
"""The version of Ollama whose API this is: clients ask for one that is new enough."""

FAMILY = "gptoss"

TEMPLATE = (
    "{{- /* Harmony, which the server renders itself; this is its outline. */ -}}\n"
    "<|start|>system<|message|>{{ .System }}{{ .Tools }}<|end|>"
    "{{ range .Messages }}<|start|>{{ .Role }}<|message|>{{ .Content }}<|end|>{{ end }}"
    "<|start|>assistant"
)

LICENSES = {"openai": "Apache-2.0", "tiny": "Apache-2.0"}
"""By publisher, or id."""

FOREVER = (1 << 63) - 1
"""Nanoseconds, the most that Go has."""


class Details(TypedDict):
    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class Tag(TypedDict):
    """size: bytes of the weights, 0 before they were read. digest: of the model's id, which its
    files are found by."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details


class Tags(TypedDict):
    models: list[Tag]


class LoadedTag(TypedDict):
    """size: bytes that it takes by plan; size_vram: those of them that a GPU uses."""

    name: str
    model: str
    size: int
    digest: str
    details: Details
    expires_at: str
    size_vram: int
    context_length: int


class LoadedTags(TypedDict):
    models: list[LoadedTag]


class Sheet(TypedDict):
    """What `show` tells."""

    license: NotRequired[str]
    parameters: str
    template: str
    details: Details
    model_info: dict[str, str | int | float]
    capabilities: list[str]
    modified_at: str


class Level(TypedDict):
    version: str


class Pulling(TypedDict):
    status: str


class PullFields(NamedModel):
    stream: StrictBool | None = None


async def tags(request: Request) -> Response:
    shown: Tags = {"models": [_tag(entry) for entry in service_of(request).registry]}
    return JSONReply(shown)


async def ps(request: Request) -> Response:
    entries = service_of(request).registry.entries
    loaded = [_loaded_tag(entry) for entry in entries if entry.status == "ready"]
    shown: LoadedTags = {"models": loaded}
    return JSONReply(shown)


async def show(request: Request) -> Response:
    body = await read_body(request, NamedModel)
    return JSONReply(_sheet(service_of(request).registry.find(body.wanted)))


async def version(request: Request) -> Response:
    shown: Level = {"version": LEVEL}
    return JSONReply(shown)


async def pull(request: Request) -> Response:
    """A model that is served is there already; another is not found."""
    body = await read_body(request, PullFields)
    service = service_of(request)
    service.registry.find(body.wanted)
    done: Pulling = {"status": "success"}
    if body.stream is False:
        return JSONReply(done)
    steps: tuple[Pulling, ...] = ({"status": "pulling manifest"}, done)
    return FrameStream(_lines(steps), service.policy, NDJSON, beat=None)


async def _lines(values: tuple[Pulling, ...]) -> AsyncGenerator[bytes, None]:
    for value in values:
        yield line(value)


def tag_of(entry: ServedModel) -> str:
    """A model's name as Ollama writes it: gpt-oss:20b, tiny:latest."""
    known = [name for name, id in ALIASES.items() if id == entry.id and name.startswith("gpt-oss:")]
    return known[0] if known else f"{entry.name}:latest"


def _tag(entry: ServedModel) -> Tag:
    facts, name = facts_of(entry), tag_of(entry)
    return {
        "name": name,
        "model": name,
        "modified_at": moment(entry.created * SECOND),
        "size": facts.nbytes,
        "digest": _digest(entry),
        "details": _details(facts),
    }


def _loaded_tag(entry: ServedModel) -> LoadedTag:
    facts, name, left = facts_of(entry), tag_of(entry), entry.expires_in * SECOND
    plan = None if entry.engine is None else entry.engine.plan
    return {
        "name": name,
        "model": name,
        "size": entry.nbytes,
        "digest": _digest(entry),
        "details": _details(facts),
        "expires_at": moment(time.time_ns() + int(min(left, FOREVER))),
        "size_vram": entry.nbytes if plan is not None and plan.gpu else 0,
        "context_length": facts.context,
    }


def _sheet(entry: ServedModel) -> Sheet:
    facts = facts_of(entry)
    harmony = ["completion", "tools", "thinking"]
    sheet: Sheet = {
        "parameters": _parameters(entry, facts),
        "template": TEMPLATE,
        "details": _details(facts),
        "model_info": _info(entry, facts),
        "capabilities": harmony if facts.speaks_harmony else ["completion"],
        "modified_at": moment(entry.created * SECOND),
    }
    if (license := LICENSES.get(facts.publisher) or LICENSES.get(entry.id)) is not None:
        sheet["license"] = license
    return sheet


def _details(facts: Facts) -> Details:
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": FAMILY,
        "families": [FAMILY],
        "parameter_size": facts.parameter_size,
        "quantization_level": facts.quantization,
    }


def _parameters(entry: ServedModel, facts: Facts) -> str:
    """The defaults, as lines of a name and a value."""
    defaults: Mapping[str, object] = {} if entry.engine is None else entry.engine.defaults
    renamed = {"repetition_penalty": "repeat_penalty"}
    given = {renamed.get(name, name): value for name, value in defaults.items()}
    if facts.context:
        given["num_ctx"] = facts.context
    return "\n".join(f"{name:<30} {value}" for name, value in sorted(given.items()))


def _info(entry: ServedModel, facts: Facts) -> dict[str, str | int | float]:
    """Under the names of GGUF."""
    info: dict[str, str | int | float] = {
        "general.architecture": FAMILY,
        "general.basename": entry.name,
    }
    if facts.context:
        info[f"{FAMILY}.context_length"] = facts.context
    if facts.config is not None:
        info["general.parameter_count"] = facts.parameters
        info |= {f"{FAMILY}.{name}": value for name, value in _shape(facts.config).items()}
    return info


def _shape(config: ModelConfig) -> dict[str, Any]:
    return {
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.sliding_window": config.sliding_window,
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "expert_count": config.num_local_experts,
        "expert_used_count": config.num_experts_per_tok,
        "feed_forward_length": config.intermediate_size,
        "rope.freq_base": config.rope_theta,
        "vocab_size": config.vocab_size,
    }


def _digest(entry: ServedModel) -> str:
    return hashlib.sha256(entry.id.encode()).hexdigest()
