"""OpenAI's two event streams: chunks of a chat completion, and the events of a response (PROTOCOLS B.4, B.5).

They are parsed one by one, but only as far as usage and the length of what the model wrote: OpenAI pads its events
to hide that length, so it cannot be told from theirs.
"""

from functools import partial

import msgspec

from gateway.core.counts import NOTHING, Form, Reported, decode
from gateway.core.openai import GROQ, USAGE, Answer, Counts, StatedUsage

_QUOTES = len('""')
_TOOL_CALL_BYTES = len('[{"index":0,"function":{"arguments":""}}]')
_DELTA = ".delta"
_LAST_EVENTS = frozenset({"response.completed", "response.incomplete", "response.failed", "error"})


class _Choice(msgspec.Struct):
    delta: dict[str, msgspec.Raw] | None = None
    finish_reason: msgspec.Raw = NOTHING
    usage: msgspec.Raw = NOTHING

    @property
    def is_finished(self) -> bool:
        return bytes(self.finish_reason) not in (b"", b"null")


class _Chunk(Answer):
    choices: list[_Choice] | None = None


class _ResponseEvent(msgspec.Struct):
    type: str = ""
    delta: msgspec.Raw = NOTHING
    response: msgspec.Raw = NOTHING


class _Response(msgspec.Struct):
    usage: StatedUsage | None = None


_CHOICES = msgspec.json.Decoder(list[_Choice])
_CHUNK = Form(_Chunk, choices=partial(decode, _CHOICES), usage=USAGE.read, x_groq=GROQ.read)
_EVENT = msgspec.json.Decoder(_ResponseEvent)
_RESPONSE = Form(_Response, usage=USAGE.read)


class ChatStream:
    """The chunks of a chat completion, complete at `[DONE]`.

    Usage comes in a chunk of its own at the end, in the last chunk that finishes a choice, or in each chunk; the
    newest one counts. It is final once no choice goes on after it.
    """

    __slots__ = ("_counts", "is_complete", "is_final", "seen_bytes")

    def __init__(self) -> None:
        self.is_complete = False
        self.is_final = False
        self.seen_bytes = 0
        self._counts = Counts()

    def see(self, data: bytes) -> None:
        if data.startswith(b"[DONE]"):
            self.is_complete = self.is_final = True
            return
        chunk = _CHUNK.read(data)
        if chunk is None:
            return
        choices = chunk.choices or []
        for choice in choices:
            if choice.delta:
                self.seen_bytes += _written_bytes(choice.delta)
            if choice.usage is not NOTHING:
                self._count(USAGE.read(choice.usage), choices)
        if chunk.usage is not None or chunk.x_groq is not None:
            self._count(chunk.stated_usage(), choices)

    def reported(self) -> Reported:
        return self._counts.reported()

    def _count(self, usage: StatedUsage | None, choices: list[_Choice]) -> None:
        if self._counts.update(usage):
            self.is_final = self.is_complete or all(choice.is_finished for choice in choices)


class ResponseStream:
    """The events of a response, complete at its terminal event, which repeats the answer and says the usage."""

    __slots__ = ("_counts", "is_complete", "is_final", "seen_bytes")

    def __init__(self) -> None:
        self.is_complete = False
        self.is_final = False
        self.seen_bytes = 0
        self._counts = Counts()

    def see(self, data: bytes) -> None:
        event = decode(_EVENT, data)
        if event is None:
            return
        if event.type.endswith(_DELTA):
            self.seen_bytes += max(0, len(bytes(event.delta)) - _QUOTES)
        elif event.type in _LAST_EVENTS:
            self._counts.update((_RESPONSE.read(event.response) or _Response()).usage)
            self.is_complete = self.is_final = True

    def reported(self) -> Reported:
        return self._counts.reported()


def _written_bytes(delta: dict[str, msgspec.Raw]) -> int:
    """How much of a delta the model wrote, whatever a vendor calls it."""
    written = 0
    for name, raw in delta.items():
        value = bytes(raw)
        if name != "role" and value != b"null":
            written += max(0, len(value) - (_TOOL_CALL_BYTES if name == "tool_calls" else _QUOTES))
    return written
