"""The parts of a body become what is written at once: compressed, divided, cut. No I/O here."""

import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Literal

from gateway.core.usage import NO_USAGE, Usage
from gateway.simulator.events import Part
from gateway.simulator.protocols import Protocol
from gateway.simulator.scripts import Script

_WINDOW_BITS = {"gzip": 31, "deflate": 15}


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
    request_id_header: str
    headers: tuple[tuple[str, str], ...]
    """Without the request's id, which every request has its own of."""
    pieces: tuple[Piece, ...]
    """At least one; an empty body is one empty piece."""
    framing: Literal["length", "chunked", "close"]
    is_cut: bool


def answer_of(script: Script, parts: Sequence[Part], content_type: str, protocol: Protocol) -> Answer:
    parts = _compress(script.encoding, parts) if script.encoding else parts
    content_type = script.content_type or content_type
    headers = [("content-type", content_type), *protocol.headers, *script.extra_headers]
    if script.retry_after_seconds is not None:
        headers.append(("retry-after", str(script.retry_after_seconds)))
    if script.encoding:
        headers.append(("content-encoding", script.encoding))
    framing = _framing(script, content_type)
    if framing == "length":
        headers.append(("content-length", str(sum(len(part.data) for part in parts))))
    return Answer(
        script=script,
        request_id_header=protocol.request_id_header,
        headers=tuple(headers),
        pieces=tuple(_pieces(script, parts)),
        framing=framing,
        is_cut=script.cut_after_events is not None or script.cut_after_bytes is not None,
    )


def _framing(script: Script, content_type: str) -> Literal["length", "chunked", "close"]:
    if script.close_delimited:
        return "close"
    return "chunked" if script.chunked_json or content_type.startswith("text/event-stream") else "length"


def _compress(encoding: str, parts: Sequence[Part]) -> list[Part]:
    """Each part can be decoded as soon as its own bytes are there."""
    compressor = zlib.compressobj(wbits=_WINDOW_BITS[encoding])
    flushes = [zlib.Z_SYNC_FLUSH] * (len(parts) - 1) + [zlib.Z_FINISH]
    return [
        replace(part, data=compressor.compress(part.data) + compressor.flush(flush))
        for part, flush in zip(parts, flushes, strict=True)
    ]


def _pieces(script: Script, parts: Sequence[Part]) -> Iterator[Piece]:
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
