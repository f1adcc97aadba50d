"""Upstream bytes -> usage: a meter is shown each chunk of an answer on its way to the client.

A meter only looks. It copes with bytes cut anywhere, never raises for what an upstream sends, and always has an
answer to "what has this request used, if it ends now?":

    message_start says input 25, cache_read 100          25 + 10
    text of 240 bytes has come, then the client leaves   at least 60 output tokens, marked as estimated
    message_delta says output 90 and a stop_reason       90 output tokens, the provider's own count

Anthropic's counts are cumulative and restated: each one present replaces the one before (PROTOCOLS A.5).
"""

import zlib
from dataclasses import dataclass
from typing import Protocol

import msgspec

from gateway.core.limits import Hold
from gateway.core.sse import EventReader
from gateway.core.usage import NO_USAGE, Usage

BYTES_PER_OUTPUT_TOKEN = 4
"""To estimate an answer that was cut off: what Anthropic's own gateway takes (PROTOCOLS G.2)."""
MOST_BELIEVED_TOKENS = 10**12
"""A count beyond this is no count: the request is estimated instead, and no sum of rows can overflow."""
MAX_JSON_BYTES = 64 * 2**20
"""A larger JSON answer is not parsed but estimated."""
_DELTA_BYTES = len('{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":""}}')


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a request used."""

    usage: Usage
    estimated: bool
    """Not all of it is the provider's own count."""


class Meter(Protocol):
    """Looks at the body of one answer."""

    @property
    def is_complete(self) -> bool:
        """The protocol's terminal event has passed: the client has all it waits for."""

    def feed(self, chunk: bytes) -> None:
        """Look at the next bytes."""

    def measure(self, *, ended: bool) -> Measurement:
        """What was used so far; `ended`: the body came to its proper end."""


class _Iteration(msgspec.Struct):
    input_tokens: object = None
    output_tokens: object = None
    cache_creation_input_tokens: object = None
    cache_read_input_tokens: object = None


class _Usage(_Iteration):
    iterations: list[_Iteration] | None = None


class _Message(msgspec.Struct):
    usage: _Usage | None = None


class _Delta(msgspec.Struct):
    stop_reason: object = None


class _Event(msgspec.Struct):
    type: str = ""
    message: _Message | None = None
    usage: _Usage | None = None
    delta: _Delta | None = None


_MESSAGE = msgspec.json.Decoder(_Message)
_EVENT = msgspec.json.Decoder(_Event)


class _Counts:
    """The newest count of each kind that the provider gave; `None`: none yet."""

    __slots__ = ("cache_read", "cache_write", "input", "output")

    def __init__(self) -> None:
        self.input: int | None = None
        self.output: int | None = None
        self.cache_write: int | None = None
        self.cache_read: int | None = None

    def update(self, usage: _Usage) -> None:
        self.input = _newest(self.input, usage, "input_tokens")
        self.output = _newest(self.output, usage, "output_tokens")
        self.cache_write = _newest(self.cache_write, usage, "cache_creation_input_tokens")
        self.cache_read = _newest(self.cache_read, usage, "cache_read_input_tokens")

    def measure(self, hold: Hold, *, is_final: bool, seen_bytes: int) -> Measurement:
        """Exact if the provider has said its last word, else never below what it said so far, and never above
        the hold unless it said so itself."""
        reported = Usage(
            input=hold.input if self.input is None else self.input,
            output=self.output or 0,
            cache_write=self.cache_write or 0,
            cache_read=self.cache_read or 0,
        )
        if is_final and self.input is not None and self.output is not None:
            return Measurement(reported, estimated=False)
        room = max(0, hold.charge - reported.charge)
        unreported = max(0, -(-seen_bytes // BYTES_PER_OUTPUT_TOKEN) - reported.output)
        output = reported.output + min(room, unreported)
        estimate = Usage(
            input=reported.input, output=output, cache_write=reported.cache_write, cache_read=reported.cache_read
        )
        return Measurement(estimate, estimated=True)


class StreamMeter:
    """An Anthropic event stream."""

    __slots__ = ("_counts", "_events", "_has_final_counts", "_hold", "_seen_bytes", "is_complete")

    def __init__(self, hold: Hold) -> None:
        self.is_complete = False
        self._hold = hold
        self._events = EventReader()
        self._counts = _Counts()
        self._has_final_counts = False
        self._seen_bytes = 0
        """Bytes of text, thinking and tool input in the deltas so far."""

    def feed(self, chunk: bytes) -> None:
        for data in self._events.feed(chunk):
            self._see(data)

    def measure(self, *, ended: bool) -> Measurement:
        del ended  # a stream is complete when its own events say so, whatever the connection did
        return self._counts.measure(self._hold, is_final=self._has_final_counts, seen_bytes=self._seen_bytes)

    def _see(self, data: bytes) -> None:
        """Only what can matter is parsed. Within a text each quote is escaped, so no text can look like it."""
        if b'"usage"' in data:
            self._see_usage(data)
        elif b'"message_stop"' in data:
            self.is_complete = True
        elif b'"content_block_delta"' in data:
            self._seen_bytes += max(0, len(data) - _DELTA_BYTES)

    def _see_usage(self, data: bytes) -> None:
        try:
            event = _EVENT.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return
        if event.type == "message_start" and event.message is not None and event.message.usage is not None:
            self._counts.update(event.message.usage)
        elif event.type == "message_delta" and event.usage is not None:
            self._counts.update(event.usage)
            if event.delta is not None and event.delta.stop_reason is not None:
                self._has_final_counts = True


class JsonMeter:
    """A whole Anthropic message."""

    __slots__ = ("_bytes", "_hold", "_pieces", "is_complete")

    def __init__(self, hold: Hold) -> None:
        self.is_complete = False
        self._hold = hold
        self._pieces: list[bytes] = []
        self._bytes = 0

    def feed(self, chunk: bytes) -> None:
        self._bytes += len(chunk)
        if self._bytes <= MAX_JSON_BYTES:
            self._pieces.append(chunk)

    def measure(self, *, ended: bool) -> Measurement:
        counts = _Counts()
        usage = self._usage() if ended and self._bytes <= MAX_JSON_BYTES else None
        if usage is not None:
            counts.update(usage)
        return counts.measure(self._hold, is_final=usage is not None, seen_bytes=self._bytes)

    def _usage(self) -> _Usage | None:
        try:
            return _MESSAGE.decode(b"".join(self._pieces)).usage
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None


class UnpackingMeter:
    """An answer that comes compressed though nobody asked for it: the meter looks at an unpacked copy."""

    __slots__ = ("_inflater", "_meter")

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # gzip or zlib, as its first bytes say

    @property
    def is_complete(self) -> bool:
        return self._meter.is_complete

    def feed(self, chunk: bytes) -> None:
        try:
            self._meter.feed(self._inflater.decompress(chunk, MAX_JSON_BYTES))
        except zlib.error:
            self._meter.feed(chunk)  # not packed after all, or broken: it is estimated by its length

    def measure(self, *, ended: bool) -> Measurement:
        return self._meter.measure(ended=ended)


class FreeMeter:
    """An answer that costs nothing: a failed request."""

    __slots__ = ("is_complete",)

    def __init__(self) -> None:
        self.is_complete = False

    def feed(self, chunk: bytes) -> None:
        """There is nothing to see."""

    def measure(self, *, ended: bool) -> Measurement:
        del ended
        return Measurement(NO_USAGE, estimated=False)


def meter_for(hold: Hold, status: int, content_type: str, content_encoding: str) -> Meter:
    """The meter for an answer with this head. What comes decides, not what the client asked for."""
    if not 200 <= status < 300:
        return FreeMeter()
    is_stream = content_type.partition(";")[0].strip().lower() == "text/event-stream"
    meter: Meter = StreamMeter(hold) if is_stream else JsonMeter(hold)
    return UnpackingMeter(meter) if content_encoding.lower() in ("gzip", "deflate") else meter


def unanswered(hold: Hold) -> Measurement:
    """The estimate for a request that was sent and never answered: its input was read, its output is not known."""
    return _Counts().measure(hold, is_final=False, seen_bytes=0)


def _newest(before: int | None, usage: _Usage, name: str) -> int | None:
    """The count that `usage` gives, or the one before.

    `iterations` can hold tokens that the top level leaves out (compaction, advisors, declined attempts): their sum
    counts where it is larger (PROTOCOLS A.4).
    """
    counts = [_believed(getattr(iteration, name)) or 0 for iteration in usage.iterations or ()]
    stated = _believed(getattr(usage, name))
    return before if stated is None else max(stated, sum(counts))


def _believed(count: object) -> int | None:
    """A count that makes sense; negative ones count as nothing."""
    if type(count) is not int or count > MOST_BELIEVED_TOKENS:
        return None
    return max(0, count)
