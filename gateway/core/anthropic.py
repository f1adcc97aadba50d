"""Anthropic's counts out of its answers (PROTOCOLS A.4, A.5).

Counts are cumulative and restated: each one present replaces the one before. `iterations` lists the steps of a
request and can hold tokens that the fields beside it leave out (compaction, advisors, declined attempts): for each
field the sum over the steps counts where it is larger. Where the model that was asked for declined and another one
answered, the last `fallback_message` names it.
"""

from collections.abc import Iterable, Sequence

import msgspec

from gateway.core.counts import MOST_BELIEVED_TOKENS, NOTHING, Count, Form, Reported, decode, newest

_DELTA_START = b'{"type":"content_block_delta"'
_DELTA_BYTES = len('{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":""}}')


class _CacheCreation(msgspec.Struct):
    """How long the tokens that were written to the cache stay there."""

    ephemeral_5m_input_tokens: Count | None = None
    ephemeral_1h_input_tokens: Count | None = None


class _Counted(msgspec.Struct):
    """The counts of a `usage`, and of each of its iterations."""

    input_tokens: Count | None = None
    output_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None
    cache_creation: _CacheCreation | None = None
    cache_read_input_tokens: Count | None = None

    def counts(self) -> list[int | None]:
        """(input, output, cache write, cache read)."""
        return [self.input_tokens, self.output_tokens, self._cache_write(), self.cache_read_input_tokens]

    def _cache_write(self) -> int | None:
        """The total; where it is left out, what its parts by lifetime add up to."""
        total, split = self.cache_creation_input_tokens, self.cache_creation
        if total is not None or split is None:
            return total
        parts = [split.ephemeral_5m_input_tokens, split.ephemeral_1h_input_tokens]
        return None if parts == [None, None] else _sum(parts)


class _Iteration(_Counted):
    type: str | None = None
    model: str | None = None

    @property
    def served_by(self) -> str:
        """The model, if this is the attempt of a fallback."""
        return self.model or "" if self.type == "fallback_message" else ""


class _Usage(_Counted):
    iterations: list[_Iteration] | None = None


class _Message(msgspec.Struct):
    usage: _Usage | None = None


class _Delta(msgspec.Struct):
    stop_reason: msgspec.Raw = NOTHING


class _Event(msgspec.Struct):
    """What matters of one event of a stream."""

    type: str = ""
    message: _Message | None = None
    usage: _Usage | None = None
    delta: _Delta | None = None

    @property
    def has_stop_reason(self) -> bool:
        """The model has ended: the counts beside it are the last ones."""
        return self.delta is not None and bytes(self.delta.stop_reason) not in (b"", b"null")


def _text(raw: msgspec.Raw) -> str:
    return decode(_TEXT, raw) or ""


def _iterations(raw: msgspec.Raw) -> list[_Iteration] | None:
    """`None` unless each of them is an object."""
    iterations = [_ITERATION.read(one) for one in decode(_LIST, raw) or ()]
    known = [one for one in iterations if one is not None]
    return known if len(known) == len(iterations) else None


_TEXT = msgspec.json.Decoder(str)
_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_CACHE_CREATION = Form(_CacheCreation)
_ITERATION = Form(_Iteration, type=_text, model=_text, cache_creation=_CACHE_CREATION.read)
_USAGE = Form(_Usage, iterations=_iterations, cache_creation=_CACHE_CREATION.read)
_MESSAGE = Form(_Message, usage=_USAGE.read)
_DELTA = Form(_Delta, stop_reason=lambda raw: raw)
_EVENT = Form(_Event, type=_text, message=_MESSAGE.read, usage=_USAGE.read, delta=_DELTA.read)


class _Counts:
    """The newest counts that the provider gave, field by field; `None`: none yet."""

    __slots__ = ("_of_iterations", "_served_by", "_stated")

    def __init__(self) -> None:
        self._stated: list[int | None] = [None] * 4
        self._of_iterations: list[int] | None = None
        self._served_by = ""

    def update(self, usage: _Usage | None) -> bool:
        """Take over a `usage`, if there is one. Returns whether it states any count."""
        if usage is None:
            return False
        stated = usage.counts()
        self._stated = newest(self._stated, stated)
        if usage.iterations:
            self._of_iterations = _sums([iteration.counts() for iteration in usage.iterations])
            self._served_by = next((name for one in reversed(usage.iterations) if (name := one.served_by)), "")
        return stated != [None] * 4

    def reported(self) -> Reported:
        counts: Sequence[int | None] = self._stated
        if self._of_iterations is not None:
            counts = [max(one or 0, several) for one, several in zip(counts, self._of_iterations, strict=True)]
        return Reported(
            input=counts[0],
            output=counts[1],
            cache_write=counts[2],
            cache_read=counts[3],
            served_by=self._served_by,
        )


class MessageStream:
    """The events of a streamed message. It is complete at `message_stop`; counts beside a stop reason are final."""

    __slots__ = ("_counts", "is_complete", "is_final", "seen_bytes")

    def __init__(self) -> None:
        self.is_complete = False
        self.is_final = False
        self.seen_bytes = 0
        self._counts = _Counts()

    def see(self, data: bytes) -> None:
        if data.startswith(_DELTA_START):
            self._see_delta(data)
        # Within a text each quote is escaped, so nearly every event that says neither need not be parsed.
        elif b'"usage"' in data or b'"message_stop"' in data:
            self._read(data)
        elif b'"content_block_delta"' in data:
            self._see_delta(data)

    def reported(self) -> Reported:
        return self._counts.reported()

    def _read(self, data: bytes) -> None:
        event = _EVENT.read(data) or _Event()
        match event.type:
            case "message_start":
                self._counts.update(_usage_of(event.message))
            case "message_delta":
                has_counts = self._counts.update(event.usage)
                self.is_final = self.is_final or (has_counts and event.has_stop_reason)
            case "message_stop":
                self.is_complete = True
            case "content_block_delta":
                self._see_delta(data)

    def _see_delta(self, data: bytes) -> None:
        self.seen_bytes += max(0, len(data) - _DELTA_BYTES)


def read_message(body: bytes) -> Reported:
    """What a whole message says that it used."""
    counts = _Counts()
    counts.update(_usage_of(_MESSAGE.read(body)))
    return counts.reported()


def _usage_of(message: _Message | None) -> _Usage | None:
    return None if message is None else message.usage


def _sums(iterations: Sequence[list[int | None]]) -> list[int]:
    columns = zip(*iterations, strict=True)
    return [_sum(column) for column in columns]


def _sum(counts: Iterable[int | None]) -> int:
    return min(sum(count or 0 for count in counts), MOST_BELIEVED_TOKENS)
