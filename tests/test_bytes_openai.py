"""OpenAI's streams pass byte for byte too; where the gateway asked for the usage, its chunk alone is taken out."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from gateway.core.usage import Usage
from gateway.simulator import Script, Simulator
from gateway.simulator.answers import message_answer
from gateway.simulator.scripts import Ask, ChatAsk, EmbeddingsAsk, ResponseAsk
from tests.byte_corpus import Exchange
from tests.harness import MODEL, Database
from tests.test_bytes import EVENTS, FRAMINGS, JSON, break_visibly, cut, pass_whole, stage

TOLD = Usage(input=33, output=22, cache_read=44)
CHAT = ChatAsk(model=MODEL, input_tokens=9, max_tokens=100, include_usage=True)
RESPONSE = ResponseAsk(model=MODEL, input_tokens=9, max_tokens=100)
EMBEDDINGS = EmbeddingsAsk(model=MODEL, input_tokens=9, inputs=2, dimensions=3)
CHAT_BODY = {"model": MODEL, "messages": [{"role": "user", "content": "Hello there"}]}
PATHS = {ChatAsk: "/v1/chat/completions", ResponseAsk: "/v1/responses", EmbeddingsAsk: "/v1/embeddings"}
ASKING = '"stream_options":{"include_usage":true}'
LINE_ENDS: Any = ("\n", "\r\n", "\r")


def answered(name: str, said: Ask, request: dict[str, Any], **script: Any) -> Exchange:
    """An answer, event by event if it is a stream."""
    output = 0 if isinstance(said, EmbeddingsAsk) else TOLD.output
    usage = Usage(input=TOLD.input, output=output, cache_read=TOLD.cache_read)
    answer = message_answer(Script(usage=usage, **script), said)
    body = b"".join(piece.data for piece in answer.pieces)
    if isinstance(said, EmbeddingsAsk):
        usage = Usage(input=TOLD.input + TOLD.cache_read)  # it tells nothing of a cache
    return Exchange(
        name=name,
        path=PATHS[type(said)],
        request=json.dumps(request).encode(),
        head=(EVENTS if said.streams else JSON,),
        pieces=tuple(re.findall(rb".+?(?:\r\n\r\n|\n\n|\r\r|$)", body, re.DOTALL)) if said.streams else (body,),
        usage=usage,
    )


def spliced(exchange: Exchange) -> Exchange:
    """The same chat from a client that does not ask for its usage."""
    body = CHAT_BODY | {"stream": True}
    request = json.dumps(body).encode()
    [chunk] = [piece for piece in exchange.pieces if re.search(rb'"choices": ?\[\]', piece)]
    return replace(
        exchange,
        name=f"{exchange.name}, spliced",
        request=request,
        forwarded=request.replace(b"{", b"{" + ASKING.encode() + b",", 1),
        withheld=chunk,
    )


def streams() -> Iterator[Exchange]:
    """Streams in every form; chats from clients that ask for their usage and from clients that do not."""
    asking = CHAT_BODY | {"stream": True, "stream_options": {"include_usage": True}}
    forms: list[dict[str, Any]] = [
        *({"line_end": end, "spaced_json": spaced} for end in LINE_ENDS for spaced in (False, True)),
        *({"comments": 2}, {"obfuscation": True}, {"thinking": "shown"}, {"tool_use": True}),
    ]
    for form in forms:
        chat = answered(f"chat {form}", replace(CHAT, streams=True), asking, **form)
        request = {"model": MODEL, "input": "Hello there", "stream": True}
        yield from (chat, spliced(chat))
        yield answered(f"response {form}", replace(RESPONSE, streams=True), request, **form)


def messages() -> Iterator[Exchange]:
    """Answers that are no stream."""
    for said, request in ((CHAT, CHAT_BODY), (RESPONSE, {"model": MODEL, "input": "a"})):
        yield answered(f"{type(said).__name__}", said, request)
    yield answered("embeddings", EMBEDDINGS, {"model": MODEL, "input": ["a", "b"]})


async def test_openais_answers_pass_as_they_are_but_for_the_usage_that_nobody_asked_for(
    provider: Simulator, database: Database
) -> None:
    exchanges = [*streams(), *messages()]
    async with stage(provider, database) as running:
        await pass_whole(running, [replace(each, framing=framing) for each in exchanges for framing in FRAMINGS])


async def test_a_chat_that_breaks_anywhere_never_looks_whole(provider: Simulator, database: Database) -> None:
    asking = CHAT_BODY | {"stream": True, "stream_options": {"include_usage": True}}
    chat = answered("chat", replace(CHAT, streams=True), asking)
    async with stage(provider, database) as running:
        await break_visibly(running, [each for whole in (chat, spliced(chat)) for each in cut(whole, step=61)])
