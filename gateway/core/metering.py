"""Upstream bytes -> usage: a meter is shown each chunk of an answer on its way to the client.

A meter only looks. It copes with bytes cut anywhere, never raises for what an upstream sends, and always has an
answer to "what has this request used, if it ends now?":

    message_start says input 25, cache_read 100          25 + 10
    text of 240 bytes has come, then the client leaves   60 output tokens, marked as estimated
    message_delta says output 90 and a stop_reason       90 output tokens, the provider's own count
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec
from msgspec.structs import replace

from gateway.core.anthropic import MessageStream, read_message
from gateway.core.counts import Reported
from gateway.core.limits import Hold
from gateway.core.openai import read_answer, read_embeddings
from gateway.core.openai_streams import ChatStream, ResponseStream
from gateway.core.protocols import Api
from gateway.core.sse import EventReader
from gateway.core.usage import NO_USAGE, Usage

BYTES_PER_OUTPUT_TOKEN = 4
"""To estimate an answer that was cut off: what Anthropic's own gateway takes (PROTOCOLS G.2)."""
MAX_JSON_BYTES = 64 * 2**20
"""A larger JSON answer is not parsed but estimated."""
_ZLIB_OR_GZIP = zlib.MAX_WBITS | 32
_PACKED_HEADER_BYTES = 2


class Measurement(msgspec.Struct, frozen=True, gc=False):
    """What a request used."""

    usage: Usage
    estimated: bool
    """Not all of it is the provider's own count."""
    served_by: str = ""
    """The model that answered in place of the one that was asked for, as the provider says; '' = none did."""


class Meter(Protocol):
    """Looks at the body of one answer."""

    @property
    def is_complete(self) -> bool:
        """The protocol's terminal event has passed: the client has all it waits for."""

    def feed(self, chunk: bytes) -> None:
        """Look at the next bytes."""

    def measure(self, *, ended: bool) -> Measurement:
        """What was used so far; `ended`: the body came to its proper end."""


class Stream(Protocol):
    """What a protocol makes of the events of one answer. It never raises, whatever an event says."""

    is_complete: bool
    """Its terminal event was seen."""
    is_final: bool
    """The counts reported are the last ones."""
    seen_bytes: int
    """Of what the model wrote, as far as it shows: text, thinking, tool input."""

    def see(self, data: bytes) -> None:
        """Look at the data of the next event."""

    def reported(self) -> Reported:
        """The newest counts."""


class StreamMeter:
    """An event stream. It is complete when its own events say so, whatever the connection does."""

    __slots__ = ("_events", "_hold", "_stream", "is_complete")

    def __init__(self, hold: Hold, stream: Stream) -> None:
        self.is_complete = False
        self._hold = hold
        self._events = EventReader()
        self._stream = stream

    def feed(self, chunk: bytes) -> None:
        stream = self._stream
        for data in self._events.feed(chunk):
            stream.see(data)
        self.is_complete = stream.is_complete

    def measure(self, *, ended: bool) -> Measurement:
        del ended
        stream = self._stream
        judge = _as_reported if stream.is_final else _estimated
        return judge(stream.reported(), self._hold, stream.seen_bytes)


class JsonMeter:
    """A whole answer, which `read` finds the counts in."""

    __slots__ = ("_bytes", "_hold", "_pieces", "_read", "is_complete")

    def __init__(self, hold: Hold, read: Callable[[bytes], Reported]) -> None:
        self.is_complete = False
        self._hold = hold
        self._read = read
        self._pieces: list[bytes] = []
        self._bytes = 0

    def feed(self, chunk: bytes) -> None:
        self._bytes += len(chunk)
        if self._bytes <= MAX_JSON_BYTES:
            self._pieces.append(chunk)

    def measure(self, *, ended: bool) -> Measurement:
        is_whole = ended and self._bytes <= MAX_JSON_BYTES
        reported = self._read(b"".join(self._pieces)) if is_whole else Reported()
        return _as_reported(reported, self._hold, self._bytes)


class LengthMeter:
    """An answer that cannot be read: its length is all that is known of it."""

    __slots__ = ("_bytes", "_hold", "is_complete")

    def __init__(self, hold: Hold) -> None:
        self.is_complete = False
        self._hold = hold
        self._bytes = 0

    def feed(self, chunk: bytes) -> None:
        self._bytes += len(chunk)

    def measure(self, *, ended: bool) -> Measurement:
        del ended
        return _estimated(Reported(), self._hold, self._bytes)


class UnpackingMeter:
    """An answer that comes compressed though nobody asked for it: the meter looks at an unpacked copy.

    What cannot be unpacked is estimated by its length, and never at less than what was read of it before.
    """

    __slots__ = ("_header", "_inflater", "_is_broken", "_length", "_meter")

    def __init__(self, meter: Meter, length: LengthMeter) -> None:
        self._meter = meter
        self._length = length
        self._inflater = zlib.decompressobj(wbits=_ZLIB_OR_GZIP)
        self._header = b""
        """What came while it was not yet known how the rest is packed."""
        self._is_broken = False

    @property
    def is_complete(self) -> bool:
        return self._meter.is_complete

    def feed(self, chunk: bytes) -> None:
        self._length.feed(chunk)
        if self._is_broken:
            return
        try:
            self._meter.feed(self._unpack(chunk))
        except zlib.error:
            self._is_broken = True

    def measure(self, *, ended: bool) -> Measurement:
        measured = self._meter.measure(ended=ended)
        if not self._is_broken:
            return measured
        by_length = self._length.measure(ended=ended)
        return max(measured, by_length, key=lambda measurement: measurement.usage.charge)

    def _unpack(self, chunk: bytes) -> bytes:
        """Some servers send deflate without its zlib header, which shows in the first two bytes."""
        header, is_header = self._header, len(self._header) < _PACKED_HEADER_BYTES
        self._header = (header + chunk)[:_PACKED_HEADER_BYTES] if is_header else header
        try:
            return self._inflater.decompress(chunk, MAX_JSON_BYTES)
        except zlib.error:
            if not is_header:
                raise
            self._inflater = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
            return self._inflater.decompress(header + chunk, MAX_JSON_BYTES)


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


_STREAMS: Mapping[Api, Callable[[], Stream]] = {
    Api.MESSAGES: MessageStream,
    Api.CHAT: ChatStream,
    Api.RESPONSES: ResponseStream,
}
_WHOLE_ANSWERS: Mapping[Api, Callable[[bytes], Reported]] = {
    Api.MESSAGES: read_message,
    Api.CHAT: read_answer,
    Api.RESPONSES: read_answer,
    Api.EMBEDDINGS: read_embeddings,
}


def meter_for(hold: Hold, status: int, content_type: str, content_encoding: str, api: Api = Api.MESSAGES) -> Meter:
    """The meter for an answer with this head. What comes decides, not what the client asked for."""
    if not 200 <= status < 300:
        return FreeMeter()
    is_stream = content_type.partition(";")[0].strip().lower() == "text/event-stream"
    meter: Meter
    if is_stream and api in _STREAMS:
        meter = StreamMeter(hold, _STREAMS[api]())
    else:
        meter = JsonMeter(hold, _WHOLE_ANSWERS[api])
    match content_encoding.strip().lower():
        case "" | "identity":
            return meter
        case "gzip" | "x-gzip" | "deflate":
            return UnpackingMeter(meter, LengthMeter(hold))
        case _:
            return LengthMeter(hold)


def unanswered(hold: Hold) -> Measurement:
    """The estimate for a request that was sent and never answered: its input was read, its output is not known."""
    return _estimated(Reported(), hold, 0)


def _as_reported(reported: Reported, hold: Hold, seen_bytes: int) -> Measurement:
    """The provider's last word, if it was one."""
    if reported.input is None or reported.output is None:
        return _estimated(reported, hold, seen_bytes)
    return Measurement(reported.usage(), estimated=False, served_by=reported.served_by)


def _estimated(reported: Reported, hold: Hold, seen_bytes: int) -> Measurement:
    """Never below what the provider said so far, and never above the hold unless it said so itself."""
    usage = reported.usage(input_when_unknown=hold.input - hold.hosted_tools)
    room = max(0, hold.charge - usage.charge)
    unreported = max(0, -(-seen_bytes // BYTES_PER_OUTPUT_TOKEN) - usage.output)
    usage = replace(usage, output=usage.output + min(room, unreported))
    return Measurement(usage, estimated=True, served_by=reported.served_by)
