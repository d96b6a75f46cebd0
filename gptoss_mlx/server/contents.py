"""The contents of `/openapi.json`: a line for each route, with what it takes and gives."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cache

from starlette.requests import Request
from starlette.responses import Response

from gptoss_mlx.server.anthropic.catalog import ModelInfo, ModelPage
from gptoss_mlx.server.anthropic.messages import TokenCount
from gptoss_mlx.server.anthropic.messages_request import MessagesRequest, PromptFields
from gptoss_mlx.server.anthropic.shape import ErrorEnvelope
from gptoss_mlx.server.anthropic.wire import MessageShown, StreamEvent
from gptoss_mlx.server.health import Health
from gptoss_mlx.server.lmstudio.answers import StudioChunk, StudioCompletion, StudioText
from gptoss_mlx.server.lmstudio.shelf import Shelf, ShelfModel
from gptoss_mlx.server.ollama import catalog
from gptoss_mlx.server.ollama.chat import TalkLine, TalkRequest
from gptoss_mlx.server.ollama.fields import NamedModel
from gptoss_mlx.server.ollama.generation import Telling, ToldLine
from gptoss_mlx.server.ollama.shape import NDJSON, ErrorLine
from gptoss_mlx.server.ollama.unsupported import REASONS
from gptoss_mlx.server.openai.chat import Chunk, Completion
from gptoss_mlx.server.openai.chat_request import ChatRequest
from gptoss_mlx.server.openai.completions import TextCompletion, TextRequest
from gptoss_mlx.server.openai.container_files import FileShown
from gptoss_mlx.server.openai.models import ModelList, ModelShown
from gptoss_mlx.server.openai.paging import ItemList
from gptoss_mlx.server.openai.response_events import ResponseEvent
from gptoss_mlx.server.openai.response_object import ResponseShown
from gptoss_mlx.server.openai.responses import Approved, Deleted, Word
from gptoss_mlx.server.openai.responses_request import ResponsesRequest
from gptoss_mlx.server.openai.shape import ErrorShown
from gptoss_mlx.server.openapi import FILE, TEXT, Described, document
from gptoss_mlx.server.replies import JSONReply
from gptoss_mlx.server.tokens import (
    Detokenized,
    DetokenizeRequest,
    Templated,
    Tokenized,
    TokenizeRequest,
)


def _ollama(
    method: str,
    path: str,
    says: str,
    gives: object = None,
    takes: type[NamedModel] | None = None,
    chunks: object = None,
) -> Described:
    return Described(method, path, says, gives, takes, chunks, NDJSON, errors=ErrorLine)


EITHER = ErrorShown | ErrorEnvelope
"""The errors of a path that two APIs share."""

OPENAI = (
    Described("POST", "/v1/chat/completions", "Chat", Completion, ChatRequest, Chunk),
    Described(
        "POST",
        "/v1/completions",
        "Continue a text as it is",
        TextCompletion,
        TextRequest,
        TextCompletion,
    ),
    Described(
        "POST", "/v1/responses", "Answer with items", ResponseShown, ResponsesRequest, ResponseEvent
    ),
    Described("GET", "/v1/responses/{id}", "A response that is kept", ResponseShown),
    Described("DELETE", "/v1/responses/{id}", "Forget a response", Deleted),
    Described("POST", "/v1/responses/{id}/cancel", "End a response", ResponseShown),
    Described("GET", "/v1/responses/{id}/input_items", "What it answers", ItemList),
    Described("POST", "/v1/responses/{id}/approvals", "Let a call run, or not", Approved, Word),
    Described("GET", "/v1/containers/{container_id}/files", "A conversation's files", ItemList),
    Described("GET", "/v1/containers/{container_id}/files/{file_id}", "One of them", FileShown),
    Described(
        "GET",
        "/v1/containers/{container_id}/files/{file_id}/content",
        "A file that python made",
        bytes,
        media=FILE,
    ),
    Described("GET", "/v1/models", "The models", ModelList | ModelPage, errors=EITHER),
    Described("GET", "/v1/models/{name:path}", "A model", ModelShown | ModelInfo, errors=EITHER),
)

ANTHROPIC = (
    Described(
        "POST",
        "/v1/messages",
        "Answer with content blocks",
        MessageShown,
        MessagesRequest,
        StreamEvent | ErrorEnvelope,
        errors=ErrorEnvelope,
    ),
    Described(
        "POST",
        "/v1/messages/count_tokens",
        "The tokens of a request",
        TokenCount,
        PromptFields,
        errors=ErrorEnvelope,
    ),
)

OLLAMA = (
    _ollama("POST", "/api/chat", "Chat, load or unload", TalkLine, TalkRequest, TalkLine),
    _ollama("POST", "/api/generate", "Answer one prompt", ToldLine, Telling, ToldLine),
    _ollama("GET", "/api/tags", "The models", catalog.Tags),
    _ollama("POST", "/api/show", "A model", catalog.Sheet, NamedModel),
    _ollama("GET", "/api/ps", "The models that are loaded", catalog.LoadedTags),
    _ollama("GET", "/api/version", "The Ollama whose API this is", catalog.Level),
    _ollama(
        "POST",
        "/api/pull",
        "See that a model is served",
        catalog.Pulling,
        catalog.PullFields,
        catalog.Pulling,
    ),
    *(
        _ollama(method, path, f"Not supported: {why}")
        for path, why in REASONS.items()
        for method in ("POST", "DELETE")
    ),
)

LM_STUDIO = (
    Described("GET", "/api/v0/models", "The models", Shelf),
    Described("GET", "/api/v0/models/{name:path}", "A model", ShelfModel),
    Described(
        "POST",
        "/api/v0/chat/completions",
        "Chat, with times",
        StudioCompletion,
        ChatRequest,
        Chunk | StudioChunk,
    ),
    Described(
        "POST",
        "/api/v0/completions",
        "Continue a text as it is, with times",
        StudioText,
        TextRequest,
        TextCompletion | StudioText,
    ),
)

OWN = (
    Described("GET", "/", "The chat page, or that the server runs", str, media=TEXT),
    Described("GET", "/page/{name:path}", "A file of the chat page", str, media=TEXT),
    Described("POST", "/tokenize", "Tokens of a text or a chat", Tokenized, TokenizeRequest),
    Described("POST", "/detokenize", "The text of tokens", Detokenized, DetokenizeRequest),
    Described("POST", "/apply-template", "A chat as the model reads it", Templated, ChatRequest),
    Described("GET", "/health", "Whether it answers", Health, errors=ErrorShown | Health),
    Described("GET", "/metrics", "Counts for Prometheus", str, media=TEXT),
    Described("GET", "/openapi.json", "This document", dict[str, object]),
)

DESCRIBED: Sequence[Described] = (*OPENAI, *ANTHROPIC, *OLLAMA, *LM_STUDIO, *OWN)


async def show(request: Request) -> Response:
    return JSONReply(await asyncio.to_thread(_document))


@cache
def _document() -> dict[str, object]:
    return document(DESCRIBED)
