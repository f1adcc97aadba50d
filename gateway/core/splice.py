"""Have a streamed chat completion say its usage, and let the client see nothing of it (PROTOCOLS B.4).

OpenAI says the usage of a stream only to clients that ask: `"stream_options": {"include_usage": true}`. For those
that do not, that is put into the request, and the extra chunk that answers it is taken out again. It is the only
case in which bytes differ from what was sent.

    {"model": "m", "stream": true}                  {"stream_options":{"include_usage":true},"model": "m", ...
    ... "stream_options": {"x": 1}, ...             ... "stream_options": {"include_usage":true,"x": 1}, ...
    ... "stream_options": null, ...                 ... "stream_options": {"include_usage":true}, ...
    ... {"include_usage": false} ...                ... {"include_usage": true} ...
"""

import re
from dataclasses import dataclass

import msgspec

from gateway.core.counts import NOTHING, decode
from gateway.core.objects import Fields

MAX_USAGE_CHUNK_BYTES = 8 * 2**10
"""A larger event is not taken for the usage chunk: what is held back must have an end."""

_ASKING = b'"include_usage":true'
_NAME = re.compile(rb'[ \t\r\n]*"(?:[^"\\]|\\.)*"[ \t\r\n]*:[ \t\r\n]*', re.DOTALL)

_BLANK_LINES = (b"\n", b"\r", b"\r\n")
_EVENT_ENDS = (b"\n\n", b"\r\r", b"\r\n\r\n")
# Within a text each quote is escaped, so these names can only be names.
_MAYBE_NO_CHOICES = re.compile(rb'"choices"(?!\s*:\s*\[\s*\{)')
_NO_OBJECT = re.compile(rb"\s*[^{\s]")
_OTHER_CHUNK = re.compile(rb'"choices"\s*:\s*(?:[^\[\s]|\[\s*[^\]\s])|"usage"\s*:\s*[^{\s]')


class _Chunk(msgspec.Struct):
    choices: msgspec.Raw = NOTHING
    usage: msgspec.Raw = NOTHING
    error: msgspec.Raw = NOTHING


_CHUNK = msgspec.json.Decoder(_Chunk)


@dataclass(frozen=True, slots=True)
class Splice:
    """One change to a body: the bytes from `begin` to `end` become `text`."""

    begin: int
    end: int
    text: bytes

    def apply(self, body: bytes) -> bytes:
        """The body with the change made, and every other byte as it was."""
        return b"".join([memoryview(body)[: self.begin], self.text, memoryview(body)[self.end :]])


def ask_for_usage(body: bytes, fields: Fields, options: Fields | None) -> Splice:
    """The change that makes a streamed chat body ask for its usage.

    `fields` are the body's top level and `options` those of its `stream_options`, as `read_object` gives them;
    `None`: it is null or does not stand there.
    """
    if "stream_options" not in fields:
        begin = body.index(b"{") + 1
        return Splice(begin, begin, b'"stream_options":{%b}%b' % (_ASKING, b"," if fields else b""))
    begin = _value_place(body, 0, fields, "stream_options")
    if options is None:
        return Splice(begin, begin + len(b"null"), b"{%b}" % _ASKING)
    if "include_usage" not in options:
        return Splice(begin + 1, begin + 1, _ASKING + (b"," if options else b""))
    place = _value_place(body, begin, options, "include_usage")
    return Splice(place, place + _length(options, "include_usage"), b"true")


def _value_place(body: bytes, begin: int, fields: Fields, name: str) -> int:
    """Where the value of `name` stands in the object that `begin`s there, or in the white space before it.

    The values before it are passed over by their lengths, and none of them is looked into.
    """
    place = body.index(b"{", begin) + 1
    for other in fields:
        found = _NAME.match(body, place)
        if found is None:
            break
        place = found.end()
        if other == name:
            return place
        place = body.index(b",", place + _length(fields, other)) + 1
    raise LookupError(name)


def _length(fields: Fields, name: str) -> int:
    """Of a value, in bytes, without a copy of it."""
    return memoryview(fields[name]).nbytes


class UsageChunkRemover:
    """Takes the extra usage chunk out of a stream, wherever its bytes are cut.

    The bytes rule: removed are the fields of an event whose data has empty `choices`, a `usage` object and no
    error, and the blank line that ends it. Every other byte is given back as it came, in order: usage beside
    choices, comments, other events, any kind of line end. Nothing is held back but the start of an event that may
    still turn out to be such a chunk, and no longer than it may.
    """

    __slots__ = ("_after_cr", "_event", "_has_removed", "_in_line", "_is_other")

    def __init__(self) -> None:
        self._event = b""
        """What is held back: the start of one event."""
        self._is_other = False
        """The event that is coming is not the usage chunk, and its start has been given back."""
        self._in_line = False
        """The end of the line given back last has not come yet."""
        self._after_cr = False
        """That line ended with CR, and the LF that may follow is part of its end."""
        self._has_removed = False
        """The last line taken was removed."""

    def feed(self, chunk: bytes) -> bytes:
        """What the client may see now; it may be empty."""
        is_between = not (self._event or self._is_other or self._in_line or self._after_cr)
        if is_between and chunk.endswith(_EVENT_ENDS) and not _MAYBE_NO_CHOICES.search(chunk):
            self._after_cr = chunk.endswith(b"\r")
            self._has_removed = False
            return chunk
        return self._look(chunk) if chunk else b""

    def rest(self) -> bytes:
        """What is still held back, once the stream has ended: no event, since its end never came."""
        event, self._event = self._event, b""
        return event

    def _look(self, chunk: bytes) -> bytes:
        given: list[bytes] = []
        if self._after_cr and chunk.startswith(b"\n"):
            given.append(b"" if self._has_removed else b"\n")
            chunk = chunk[1:]
        lines = (self._event + chunk).splitlines(keepends=True)
        self._event = b""
        given.extend(map(self._take, lines))
        self._after_cr = chunk.endswith(b"\r") and not self._event
        return b"".join(given)

    def _take(self, line: bytes) -> bytes:
        """What may be given back once this line, or the part of it that is there, is known."""
        self._has_removed = False
        if line in _BLANK_LINES and not self._in_line:
            return self._end(line)
        if not (self._in_line or self._is_other or (line.startswith(b":") and not self._event)):
            self._event += line
            if _may_be_usage_chunk(self._event):
                return b""
            self._is_other = True
            line, self._event = self._event, b""
        self._in_line = not line.endswith((b"\n", b"\r"))
        return line

    def _end(self, blank_line: bytes) -> bytes:
        event, self._event = self._event, b""
        self._is_other = False
        self._has_removed = _is_usage_chunk(event)
        if self._has_removed:
            return b"".join(line for line in event.splitlines(keepends=True) if line.startswith(b":"))
        return event + blank_line


def _may_be_usage_chunk(event: bytes) -> bool:
    """Whether an event that begins so may still turn out to be one."""
    data = _data_of(event)
    is_other = _NO_OBJECT.match(data) or _OTHER_CHUNK.search(data)
    return len(event) <= MAX_USAGE_CHUNK_BYTES and not is_other


def _is_usage_chunk(event: bytes) -> bool:
    chunk = decode(_CHUNK, _data_of(event)) if event else None
    if chunk is None:
        return False
    has_no_choices = b"".join(bytes(chunk.choices).split()) == b"[]"
    has_error = bytes(chunk.error) not in (b"", b"null")
    return has_no_choices and bytes(chunk.usage).startswith(b"{") and not has_error


def _data_of(event: bytes) -> bytes:
    return b"\n".join(line[len(b"data:") :] for line in event.splitlines() if line.startswith(b"data:"))
