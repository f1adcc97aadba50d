"""A script and a request become the bytes of an answer: JSON or events, encoded, divided, cut. No I/O here.

    message_answer(Script(), ask)     `message_start`, `ping`, `content_block_start` … `message_stop`, in one piece

Each `Piece` knows what the wire has reported once it is out, so a test can compare that with what was charged.
"""

import json
import random
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, Literal

from gateway.core.usage import NO_USAGE, Usage
from gateway.simulator.scripts import (
    Ask,
    Block,
    Script,
    blocks,
    counts,
    full_usage,
    iterations,
    stop_reason,
    usage_of,
    with_iterations,
)

JSON_TYPE = "application/json"
SSE_TYPE = "text/event-stream; charset=utf-8"

_CACHED_ANSWERS = 128
"""More than any test or benchmark repeats; an answer is a few kB, seldom some MB."""
_WINDOW_BITS = {"gzip": 31, "deflate": 15}
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_PROVIDER_HEADERS = (
    ("anthropic-organization-id", "5f3a0c1e-0000-4000-8000-00000000051d"),
    ("anthropic-ratelimit-requests-limit", "4000"),
    ("anthropic-ratelimit-requests-remaining", "3999"),
    ("anthropic-ratelimit-requests-reset", "2099-01-01T00:00:00Z"),
    ("anthropic-ratelimit-tokens-limit", "2400000"),
    ("anthropic-ratelimit-tokens-remaining", "2399000"),
    ("anthropic-ratelimit-tokens-reset", "2099-01-01T00:00:00Z"),
    ("set-cookie", "__cf_bm=simulated-cookie; path=/; HttpOnly"),
    ("cf-ray", "8f00simulated-FRA"),
)
"""On every answer, as the real provider and its edge send them: what a gateway must not pass on is among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Bytes that are written at once."""

    data: bytes
    pause_seconds: float | None
    """Before it; `None`: it leaves together with the headers."""
    reported: Usage
    """What the body has reported up to the end of this piece."""
    completes: bool
    """Whether the terminal event, or the whole body, is out with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """All that is sent. The headers promise the whole body, even where the pieces end before."""

    script: Script
    headers: tuple[tuple[str, str], ...]
    pieces: tuple[Piece, ...]
    """At least one; an empty body is one empty piece."""
    framing: Literal["length", "chunked", "close"]
    is_cut: bool


@dataclass(frozen=True, slots=True)
class _Part:
    """One event, or a whole body."""

    data: bytes
    told: Usage | None = None
    """All that is reported so far, if it changes here."""
    is_terminal: bool = False


def fixed_answer(script: Script, request_id: str) -> Answer:
    """The scripted body or error, for which `Script.is_fixed`."""
    body = script.body
    if body is None:
        kind = script.error_type or _ERROR_TYPES.get(script.status, "api_error")
        error = {"type": kind, "message": script.error_message}
        body = _encode(script, {"type": "error", "error": error, "request_id": request_id})
    return _answer(script, [_Part(body, script.usage, is_terminal=True)], JSON_TYPE)


def lookup_answer(script: Script, value: dict[str, Any]) -> Answer:
    """A JSON answer that uses no tokens."""
    return _answer(script, [_Part(_encode(script, value), is_terminal=True)], JSON_TYPE)


@lru_cache(maxsize=_CACHED_ANSWERS)
def message_answer(script: Script, ask: Ask) -> Answer:
    """A message, as JSON or as a stream. The same for the same arguments, so it is built once."""
    if ask.streams:
        return _answer(script, _stream(script, ask), SSE_TYPE)
    return _answer(script, [_message(script, ask)], JSON_TYPE)


# The body, whole or in events.


def _encode(script: Script, value: object) -> bytes:
    separators = (", ", ": ") if script.spaced_json else (",", ":")
    return json.dumps(value, separators=separators).encode()


def _envelope(ask: Ask, **fields: object) -> dict[str, Any]:
    message = {"id": "msg_simulated", "type": "message", "role": "assistant", "model": ask.model}
    return message | {"content": [], "stop_reason": None, "stop_sequence": None} | fields


def _usage_field(script: Script, usage: dict[str, Any]) -> dict[str, Any]:
    if script.omit_usage:
        return {}
    return {"usage": None if script.null_usage else usage}


def _message(script: Script, ask: Ask) -> _Part:
    usage = usage_of(script, ask)
    content = [block.whole for block in blocks(script, ask)]
    message = _envelope(ask, content=content, stop_reason=stop_reason(script, ask))
    message |= _usage_field(script, full_usage(usage) | iterations(script))
    told = with_iterations(script, usage) if script.reports_usage else None
    return _Part(_encode(script, message), told, is_terminal=True)


def _stream(script: Script, ask: Ask) -> list[_Part]:
    start = _message_start(script, ask)
    events = [start]
    for index, block in enumerate(blocks(script, ask)):
        events += _block_events(script, index, block)
    events += _message_deltas(script, ask, start.told or NO_USAGE)
    events.append(_event(script, "message_stop", is_terminal=True))
    events = _interleave(events, _fillers(script))
    if script.trailing_bytes:
        events.append(_Part(script.trailing_bytes))
    if script.error_event_after_events is not None:
        error = {"type": script.error_type or "overloaded_error", "message": script.error_message}
        events[script.error_event_after_events :] = [_event(script, "error", error=error)]
    return events


def _event(
    script: Script, name: str, told: Usage | None = None, *, is_terminal: bool = False, **fields: object
) -> _Part:
    data = _encode(script, {"type": name} | fields).decode()
    text = f"event: {name}\ndata: {data}\n\n".replace("\n", script.line_end)
    return _Part(text.encode(), told, is_terminal)


def _message_start(script: Script, ask: Ask) -> _Part:
    usage = usage_of(script, ask)
    usage = script.start_usage or replace(usage, output=min(1, usage.output))
    shown = {} if script.omit_start_usage else _usage_field(script, full_usage(usage))
    told = usage if script.reports_usage and shown else None
    return _event(script, "message_start", told, message=_envelope(ask, **shown))


def _block_events(script: Script, index: int, block: Block) -> Iterator[_Part]:
    yield _event(script, "content_block_start", index=index, content_block=block.start)
    for delta in block.deltas:
        yield _event(script, "content_block_delta", index=index, delta=delta)
    yield _event(script, "content_block_stop", index=index)


def _message_deltas(script: Script, ask: Ask, told: Usage) -> Iterator[_Part]:
    """Cumulative counts; the last has the stop reason and the iterations."""
    usage = usage_of(script, ask)
    for number in range(1, script.message_deltas + 1):
        output = usage.output * number // script.message_deltas
        told = replace(usage if script.restate_input else told, output=output)
        shown = counts(told) if script.restate_input else {"output_tokens": output}
        is_last = number == script.message_deltas
        if is_last:
            shown |= iterations(script)
            told = with_iterations(script, told)
        delta = {"stop_reason": stop_reason(script, ask) if is_last else None, "stop_sequence": None}
        fields = _usage_field(script, shown)
        yield _event(script, "message_delta", told if script.reports_usage else None, delta=delta, **fields)


def _fillers(script: Script) -> deque[_Part]:
    unknown = _event(script, "simulated_news", detail="a type of event that nobody knows yet")
    return deque([_event(script, "ping")] * script.pings + [unknown] * script.unknown_events)


def _interleave(events: list[_Part], fillers: deque[_Part]) -> list[_Part]:
    """One filler after each event, from the first on; those left over stand before the last event."""
    mixed = []
    for event in events[:-1]:
        mixed.append(event)
        if fillers:
            mixed.append(fillers.popleft())
    return [*mixed, *fillers, events[-1]]


# From the body to pieces.


def _answer(script: Script, parts: Sequence[_Part], content_type: str) -> Answer:
    parts = _compress(script.encoding, parts) if script.encoding else parts
    content_type = script.content_type or content_type
    headers = [("content-type", content_type), *_PROVIDER_HEADERS, *script.extra_headers]
    if script.encoding:
        headers.append(("content-encoding", script.encoding))
    framing = _framing(script, content_type)
    if framing == "length":
        headers.append(("content-length", str(sum(len(part.data) for part in parts))))
    return Answer(
        script=script,
        headers=tuple(headers),
        pieces=tuple(_pieces(script, parts)),
        framing=framing,
        is_cut=script.cut_after_events is not None or script.cut_after_bytes is not None,
    )


def _framing(script: Script, content_type: str) -> Literal["length", "chunked", "close"]:
    if script.close_delimited:
        return "close"
    return "chunked" if script.chunked_json or content_type.startswith("text/event-stream") else "length"


def _compress(encoding: str, parts: Sequence[_Part]) -> list[_Part]:
    """Each part can be decoded as soon as its own bytes are there."""
    compressor = zlib.compressobj(wbits=_WINDOW_BITS[encoding])
    flushes = [zlib.Z_SYNC_FLUSH] * (len(parts) - 1) + [zlib.Z_FINISH]
    return [
        replace(part, data=compressor.compress(part.data) + compressor.flush(flush))
        for part, flush in zip(parts, flushes, strict=True)
    ]


def _pieces(script: Script, parts: Sequence[_Part]) -> Iterator[Piece]:
    body = b"".join(part.data for part in parts)
    ends = list(accumulate((len(part.data) for part in parts), initial=0))
    marks = [(end, part.told) for end, part in zip(ends[1:], parts, strict=True) if part.told is not None]
    complete_at = next((end for end, part in zip(ends[1:], parts, strict=True) if part.is_terminal), None)
    stall_at = _end_of(script.stall_after_events, ends)
    for start, end in pairwise(_boundaries(script, ends)):
        pause = script.pause_seconds if start else None
        yield Piece(
            data=body[start:end],
            pause_seconds=script.stall_seconds if start == stall_at else pause,
            reported=next((told for at, told in reversed(marks) if at <= end), NO_USAGE),
            completes=complete_at is not None and complete_at <= end,
        )


def _end_of(events: int | None, ends: Sequence[int]) -> int | None:
    return None if events is None else ends[min(events, len(ends) - 1)]


def _boundaries(script: Script, ends: Sequence[int]) -> list[int]:
    """Where pieces begin and end: at least 0 and the end of what is written."""
    total = ends[-1]
    by_events = _end_of(script.cut_after_events, ends)
    last = min(total, *(cut for cut in (by_events, script.cut_after_bytes, total) if cut is not None))
    inner = set(_split(script, total) if script.split_bytes else ends if script.pause_seconds else ())
    inner.add(_end_of(script.stall_after_events, ends) or 0)
    return [0, *sorted(end for end in inner if 0 < end < last), last]


def _split(script: Script, total: int) -> Iterator[int]:
    dice = random.Random(script.split_seed)  # noqa: S311 - lengths of pieces, the same for the same seed
    end = 0
    while end < total:
        end += script.split_bytes if script.split_seed is None else dice.randint(1, script.split_bytes)
        yield end
