"""Server-sent events out of bytes that are cut anywhere (WHATWG HTML, section 9.2).

Lines end with LF, CR or CRLF, also when the two halves of a CRLF come in different reads. The data lines of an
event are joined; a blank line completes it, and one that the end of the stream cut off is none. Only data is kept:
names, ids and comments say nothing of usage.
"""

MAX_EVENT_BYTES = 16 * 2**20
"""A larger event is passed over (it still reaches the client): memory for each stream must have an end."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventReader:
    """Fed with chunks as they come, gives the data of each event that they complete."""

    __slots__ = ("_after_cr", "_data", "_data_bytes", "_is_first", "_line", "_line_bytes")

    def __init__(self) -> None:
        self._line: list[bytes] = []
        """The pieces of a line whose end has not come yet."""
        self._line_bytes = 0
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._after_cr = False
        self._is_first = True

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of the events that `chunk` completes, in order."""
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
