"""Tokens of texts and of chats: `/tokenize`, `/detokenize` and `/apply-template`.

Fields and answers are those of llama.cpp and of vLLM. Nothing is read that the context does not
hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NotRequired

from pydantic import StrictBool, StrictInt, StrictStr
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from gptoss_mlx.engine.engine import Engine
from gptoss_mlx.errors import MessageError
from gptoss_mlx.harmony.tokenizer import Tokenizer
from gptoss_mlx.server.bodies import Body, read_body
from gptoss_mlx.server.history import JSON
from gptoss_mlx.server.job import Ask
from gptoss_mlx.server.openai.chat_request import ChatRequest
from gptoss_mlx.server.problems import Problem
from gptoss_mlx.server.replies import JSONReply
from gptoss_mlx.server.service import service_of


class TokenizeRequest(Body):
    """content (llama.cpp) or prompt (vLLM): a text, or texts and ids mixed; else messages, as a
    chat has them.

    parse_special: whether the texts of control tokens stand for the tokens; true unless given.
    with_pieces (llama.cpp), return_token_strs (vLLM): the texts of the tokens as well. add_special
    changes nothing: Harmony has no token that all texts begin with.
    """

    model: StrictStr | None = None
    content: StrictStr | list[StrictStr | StrictInt] | None = None
    prompt: StrictStr | None = None
    messages: list[JSON] | None = None
    tools: list[JSON] | None = None
    reasoning_effort: StrictStr | None = None
    response_format: JSON | None = None
    parse_special: StrictBool | None = None
    with_pieces: StrictBool | None = None
    return_token_strs: StrictBool | None = None

    @property
    def texts(self) -> Sequence[str | int] | None:
        given = self.prompt if self.content is None else self.content
        return [given] if isinstance(given, str) else given

    def ask(self) -> Ask:
        """What a chat of these messages asks. Raises Problem."""
        if not self.messages:
            raise Problem(400, "give content, prompt or messages", param="content")
        request = ChatRequest(
            messages=self.messages,
            tools=self.tools,
            reasoning_effort=self.reasoning_effort,
            response_format=self.response_format,
        )
        return request.ask()[0]


class DetokenizeRequest(Body):
    model: StrictStr | None = None
    tokens: list[StrictInt]


class TokenPiece(TypedDict):
    """piece: a token's text, or its bytes where they are no whole characters."""

    id: int
    piece: str | list[int]


class Tokenized(TypedDict):
    """max_model_len: tokens of the context."""

    tokens: list[int] | list[TokenPiece]
    count: int
    max_model_len: int
    token_strs: NotRequired[list[str]]


class Detokenized(TypedDict):
    """The text under llama.cpp's name and under vLLM's."""

    content: str
    prompt: str


class Templated(TypedDict):
    prompt: str


async def tokenize(request: Request) -> Response:
    body = await read_body(request, TokenizeRequest)
    ask = body.ask() if body.texts is None else None
    return JSONReply(await service_of(request).read(body.model, partial(_tokenized, body, ask)))


async def detokenize(request: Request) -> Response:
    body = await read_body(request, DetokenizeRequest)
    return JSONReply(await service_of(request).read(body.model, partial(_detokenized, body.tokens)))


async def apply_template(request: Request) -> Response:
    body = await read_body(request, ChatRequest)
    return JSONReply(await service_of(request).read(body.model, partial(_templated, body.ask()[0])))


def _tokenized(body: TokenizeRequest, ask: Ask | None, engine: Engine) -> Tokenized:
    tokenizer = engine.tokenizer
    if ask is None:
        special = body.parse_special is not False
        ids = _ids(tokenizer, body.texts or (), special, engine.context)
        if ids:
            engine.preprocessor.check_ids(ids)
    else:
        ids = _chat_ids(ask, engine)
    pieces: list[TokenPiece] = []
    if body.with_pieces:
        pieces = [{"id": id, "piece": _piece(tokenizer.token_bytes(id))} for id in ids]
    shown: Tokenized = {
        "tokens": pieces or ids,
        "count": len(ids),
        "max_model_len": engine.context,
    }
    if body.return_token_strs:
        shown["token_strs"] = [tokenizer.token_bytes(id).decode("utf-8", "replace") for id in ids]
    return shown


def _detokenized(ids: list[int], engine: Engine) -> Detokenized:
    if ids:
        engine.preprocessor.check_ids(ids)
    text = _text(engine.tokenizer, ids)
    return {"content": text, "prompt": text}


def _templated(ask: Ask, engine: Engine) -> Templated:
    return {"prompt": _text(engine.tokenizer, _chat_ids(ask, engine))}


def _chat_ids(ask: Ask, engine: Engine) -> list[int]:
    if engine.tokenizer.harmony is None:
        raise MessageError("this model continues texts, and has no form for messages")
    options = ask.options
    return engine.preprocessor.ids(
        ask.prompt,
        tools=options.get("tools", ()),
        reasoning=options.get("reasoning", "medium"),
        response_format=options.get("response_format"),
    )


def _ids(tokenizer: Tokenizer, texts: Sequence[str | int], special: bool, most: int) -> list[int]:
    """Raises ContextError for surely more than `most`."""
    plain = None if special else tokenizer.harmony
    encode = tokenizer.encode if plain is None else plain.encode
    ids: list[int] = []
    for text in texts:
        ids += [text] if isinstance(text, int) else encode(text, most)
    return ids


def _piece(data: bytes) -> str | list[int]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


def _text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    return b"".join(map(tokenizer.token_bytes, ids)).decode("utf-8", "replace")
