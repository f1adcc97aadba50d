"""A script and a request become an answer: which body it has, and what is around it. No I/O here.

    message_answer(Script(), ask)     `message_start`, `ping`, `content_block_start` … `message_stop`, in one piece

Each `Piece` knows what the wire has reported once it is out, so a test can compare that with what was charged.
"""

from functools import lru_cache
from typing import Any

from gateway.simulator.chat import chat_completion, chat_stream
from gateway.simulator.embeddings import embeddings
from gateway.simulator.events import Part, encode
from gateway.simulator.messages import message, message_stream
from gateway.simulator.pieces import Answer, answer_of
from gateway.simulator.protocols import ANTHROPIC, OPENAI, Protocol
from gateway.simulator.responses import response, response_stream
from gateway.simulator.scripts import Ask, ChatAsk, EmbeddingsAsk, ResponseAsk, Script

JSON_TYPE = "application/json"
SSE_TYPE = "text/event-stream; charset=utf-8"

_CACHED_ANSWERS = 128
"""More than any test or benchmark repeats; an answer is a few kB, seldom some MB."""


def fixed_answer(script: Script, request_id: str, protocol: Protocol = ANTHROPIC) -> Answer:
    """The scripted body or error, for which `Script.is_fixed`."""
    body = script.body
    if body is None:
        body = encode(script, protocol.error(script, request_id))
    return answer_of(script, [Part(body, script.usage, is_terminal=True)], JSON_TYPE, protocol)


def lookup_answer(script: Script, value: dict[str, Any], protocol: Protocol = ANTHROPIC) -> Answer:
    """A JSON answer that uses no tokens."""
    return answer_of(script, [Part(encode(script, value), is_terminal=True)], JSON_TYPE, protocol)


@lru_cache(maxsize=_CACHED_ANSWERS)
def message_answer(script: Script, ask: Ask) -> Answer:
    """What the ask is for, as JSON or as a stream. The same for the same arguments, so it is built once."""
    protocol = ANTHROPIC if type(ask) is Ask else OPENAI
    if ask.streams:
        return answer_of(script, _stream(script, ask), SSE_TYPE, protocol)
    return answer_of(script, [_whole(script, ask)], JSON_TYPE, protocol)


def _whole(script: Script, ask: Ask) -> Part:
    match ask:
        case ChatAsk():
            return chat_completion(script, ask)
        case ResponseAsk():
            return response(script, ask)
        case EmbeddingsAsk():
            return embeddings(script, ask)
        case _:
            return message(script, ask)


def _stream(script: Script, ask: Ask) -> list[Part]:
    match ask:
        case ChatAsk():
            return chat_stream(script, ask)
        case ResponseAsk():
            return response_stream(script, ask)
        case _:
            return message_stream(script, ask)
