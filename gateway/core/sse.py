"""Server-sent events out of bytes that are cut anywhere (WHATWG HTML, section 9.2).

Lines end with LF, CR or CRLF, also when the two halves of a CRLF come in different reads. The data lines of an
event are joined; a blank line completes it, and one that the end of the stream cut off is none. Only data is kept:
names, ids and comments say nothing of usage.

Nearly every read holds whole events, one or several, each with one line of data. Such a read is not taken apart
line by line: its events are the lines of data before a blank line, if no other line of data is in it.
"""

import re

MAX_EVENT_BYTES = 16 * 2**20
"""A larger event is passed over (it still reaches the client): memory for each stream must have an end."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_CR = ord("\r")
_EVENT = re.compile(rb"\ndata: ?(.*)\n(?=\n)")
"""A line of data with a blank line after it, where lines end with LF."""


class EventReader:
    """Fed with chunks as they come, gives the data of each event that they complete."""

    __slots__ = ("_after_cr", "_data", "_data_bytes", "_is_between_events", "_is_first", "_line", "_line_bytes")

    def __init__(self) -> None:
        self._line: list[bytes] = []
        """The pieces of a line whose end has not come yet."""
        self._line_bytes = 0
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._after_cr = False
        self._is_first = True
        self._is_between_events = False
        """All that came is done with, so what comes next begins an event."""

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of the events that `chunk` completes, in order."""
        if self._is_between_events:
            events = _whole_events(chunk)
            if events is not None:
                return events
        events = self._feed_lines(chunk)
        self._is_between_events = not (self._line or self._data_bytes or self._after_cr or self._is_first)
        return events

    def _feed_lines(self, chunk: bytes) -> list[bytes]:
        if self._after_cr and chunk:
            self._after_cr = False
            chunk = chunk.removeprefix(b"\n")
        if not chunk:
            return []
        self._after_cr = chunk.endswith(b"\r")
        lines = chunk.splitlines()
        unfinished = b"" if chunk.endswith((b"\n", b"\r")) else lines.pop()
        if lines and self._line:
            self._line.append(lines[0])
            lines[0] = b"".join(self._line)
            self._line.clear()
            self._line_bytes = 0
        events = [event for line in lines if (event := self._take(line)) is not None]
        if unfinished:
            self._keep(unfinished)
        return events

    def _keep(self, piece: bytes) -> None:
        self._line_bytes += len(piece)
        if self._line_bytes <= MAX_EVENT_BYTES:
            self._line.append(piece)

    def _take(self, line: bytes) -> bytes | None:
        """The data of the event that this line completes, if it does."""
        if self._is_first:
            self._is_first = False
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if line.startswith(b"data:"):
            self._data_bytes += len(line)
            if self._data_bytes <= MAX_EVENT_BYTES:
                self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
        elif not line and self._data_bytes:
            event = b"\n".join(self._data)
            self._data.clear()
            self._data_bytes = 0
            return event
        return None


def _whole_events(chunk: bytes) -> list[bytes] | None:
    """The data of a chunk of whole events; `None` if it is more than events with one line of data each, or less."""
    if chunk[-2:] != b"\n\n" or _CR in chunk or len(chunk) > MAX_EVENT_BYTES:
        return None
    lines = b"\n" + chunk
    events = _EVENT.findall(lines)
    return events if len(events) == lines.count(b"\ndata:") else None
