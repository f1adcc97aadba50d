"""Anthropic's counts out of its answers (PROTOCOLS A.4, A.5).

Counts are cumulative and restated: each one present replaces the one before. `iterations` lists the steps of a
request and can hold tokens that the fields beside it leave out (compaction, advisors, declined attempts): for each
field the sum over the steps counts where it is larger. Where the model that was asked for declined and another one
answered, the last `fallback_message` names it.
"""

from collections.abc import Iterable, Sequence

import msgspec

from gateway.core.counts import MOST_BELIEVED_TOKENS, NOTHING, Reported, believed, decode, newest

_DELTA_START = b'{"type":"content_block_delta"'
_DELTA_BYTES = len('{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":""}}')


class _CacheCreation(msgspec.Struct):
    """How long the tokens that were written to the cache stay there."""

    ephemeral_5m_input_tokens: msgspec.Raw = NOTHING
    ephemeral_1h_input_tokens: msgspec.Raw = NOTHING


class _Counted(msgspec.Struct):
    """The fields of `usage`, and of each of its iterations; raw, so that an odd value spoils none of the others."""

    type: msgspec.Raw = NOTHING
    model: msgspec.Raw = NOTHING
    input_tokens: msgspec.Raw = NOTHING
    output_tokens: msgspec.Raw = NOTHING
    cache_creation_input_tokens: msgspec.Raw = NOTHING
    cache_creation: msgspec.Raw = NOTHING
    cache_read_input_tokens: msgspec.Raw = NOTHING
    iterations: msgspec.Raw = NOTHING

    @property
    def served_by(self) -> str:
        """The model, if this is the attempt of a fallback."""
        return decode(_TEXT, self.model) or "" if bytes(self.type) == b'"fallback_message"' else ""

    def counts(self) -> list[int | None]:
        """(input, output, cache write, cache read)."""
        return [
            believed(self.input_tokens),
            believed(self.output_tokens),
            self._cache_write(),
            believed(self.cache_read_input_tokens),
        ]

    def _cache_write(self) -> int | None:
        """The total; where it is left out, what its parts by lifetime add up to."""
        total = believed(self.cache_creation_input_tokens)
        split = decode(_CACHE_CREATION, self.cache_creation) if total is None else None
        if split is None:
            return total
        parts = [believed(split.ephemeral_5m_input_tokens), believed(split.ephemeral_1h_input_tokens)]
        return None if parts == [None, None] else _sum(parts)


class _Message(msgspec.Struct):
    usage: msgspec.Raw = NOTHING


class _Delta(msgspec.Struct):
    stop_reason: msgspec.Raw = NOTHING


class _Event(msgspec.Struct):
    """What matters of one event of a stream."""

    type: str = ""
    message: msgspec.Raw = NOTHING
    usage: msgspec.Raw = NOTHING
    delta: msgspec.Raw = NOTHING

    @property
    def has_stop_reason(self) -> bool:
        """The model has ended: the counts beside it are the last ones."""
        delta = decode(_DELTA, self.delta)
        return delta is not None and bytes(delta.stop_reason) not in (b"", b"null")


_EVENT = msgspec.json.Decoder(_Event)
_MESSAGE = msgspec.json.Decoder(_Message)
_DELTA = msgspec.json.Decoder(_Delta)
_CACHE_CREATION = msgspec.json.Decoder(_CacheCreation)
_COUNTED = msgspec.json.Decoder(_Counted)
_ITERATIONS = msgspec.json.Decoder(list[_Counted])
_TEXT = msgspec.json.Decoder(str)


class _Counts:
    """The newest counts that the provider gave, field by field; `None`: none yet."""

    __slots__ = ("_of_iterations", "_served_by", "_stated")

    def __init__(self) -> None:
        self._stated: list[int | None] = [None] * 4
        self._of_iterations: list[int | None] = [None] * 4
        self._served_by = ""

    def update(self, usage: msgspec.Raw) -> bool:
        """Take over a `usage` object, or nothing if it is none. Returns whether it states any count."""
        counted = decode(_COUNTED, usage)
        if counted is None:
            return False
        stated = counted.counts()
        self._stated = newest(self._stated, stated)
        iterations = decode(_ITERATIONS, counted.iterations)
        if iterations:
            self._of_iterations = _sums([iteration.counts() for iteration in iterations])
            self._served_by = next((name for one in reversed(iterations) if (name := one.served_by)), "")
        return stated != [None] * 4

    def reported(self) -> Reported:
        counts = [
            max((count for count in pair if count is not None), default=None)
            for pair in zip(self._stated, self._of_iterations, strict=True)
        ]
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
            self.seen_bytes += max(0, len(data) - _DELTA_BYTES)
        # Within a text each quote is escaped, so nearly every event that says neither need not be parsed.
        elif b'"usage"' in data or b'"message_stop"' in data:
            self._read(data)
        elif b'"content_block_delta"' in data:
            self.seen_bytes += max(0, len(data) - _DELTA_BYTES)

    def reported(self) -> Reported:
        return self._counts.reported()

    def _read(self, data: bytes) -> None:
        event = decode(_EVENT, data) or _Event()
        match event.type:
            case "message_start":
                self._counts.update(_usage_of(event.message))
            case "message_delta":
                has_counts = self._counts.update(event.usage)
                self.is_final = self.is_final or (has_counts and event.has_stop_reason)
            case "message_stop":
                self.is_complete = True
            case "content_block_delta":
                self.seen_bytes += max(0, len(data) - _DELTA_BYTES)


def read_message(body: bytes) -> Reported:
    """What a whole message says that it used."""
    counts = _Counts()
    counts.update(_usage_of(body))
    return counts.reported()


def _usage_of(message: bytes | msgspec.Raw) -> msgspec.Raw:
    """The `usage` of a message; empty if there is none."""
    return (decode(_MESSAGE, message) or _Message()).usage


def _sums(iterations: Sequence[list[int | None]]) -> list[int | None]:
    columns = zip(*iterations, strict=True)
    return [_sum(column) for column in columns]


def _sum(counts: Iterable[int | None]) -> int:
    return min(sum(count or 0 for count in counts), MOST_BELIEVED_TOKENS)
