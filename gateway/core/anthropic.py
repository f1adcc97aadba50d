"""Anthropic's counts out of its answers, believed as far as they make sense (PROTOCOLS A.4, A.5).

Counts are cumulative and restated: each one present replaces the one before. `iterations` lists the steps of a
request and can hold tokens that the fields beside it leave out (compaction, advisors, declined attempts): for each
field the sum over the steps counts where it is larger.
"""

import re
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from gateway.core.usage import Usage

MOST_BELIEVED_TOKENS = 10**12
"""A count beyond this is no count, so no sum of rows can overflow; the request is estimated instead."""

_COUNT = re.compile(rb"-?\d{1,4000}", re.ASCII)
_NONE = msgspec.Raw(b"")
T = TypeVar("T")


class _Counted(msgspec.Struct):
    """The fields of `usage`, and of each of its iterations; raw, so that an odd value spoils none of the others."""

    input_tokens: msgspec.Raw = _NONE
    output_tokens: msgspec.Raw = _NONE
    cache_creation_input_tokens: msgspec.Raw = _NONE
    cache_read_input_tokens: msgspec.Raw = _NONE
    iterations: msgspec.Raw = _NONE

    def counts(self) -> list[int | None]:
        fields = (
            self.input_tokens,
            self.output_tokens,
            self.cache_creation_input_tokens,
            self.cache_read_input_tokens,
        )
        return [_believed(bytes(field)) for field in fields]


class _Message(msgspec.Struct):
    usage: msgspec.Raw = _NONE


class _Delta(msgspec.Struct):
    stop_reason: msgspec.Raw = _NONE


class Event(msgspec.Struct):
    """What matters of one event of a stream."""

    type: str = ""
    message: msgspec.Raw = _NONE
    usage: msgspec.Raw = _NONE
    delta: msgspec.Raw = _NONE

    @property
    def has_stop_reason(self) -> bool:
        """The last counts have been given."""
        delta = _decode(_DELTA, self.delta)
        return delta is not None and bytes(delta.stop_reason) not in (b"", b"null")


_EVENT = msgspec.json.Decoder(Event)
_MESSAGE = msgspec.json.Decoder(_Message)
_DELTA = msgspec.json.Decoder(_Delta)
_COUNTED = msgspec.json.Decoder(_Counted)
_ITERATIONS = msgspec.json.Decoder(list[_Counted])


class Counts:
    """The newest counts that the provider gave, field by field; `None`: none yet."""

    __slots__ = ("_of_iterations", "_stated")

    def __init__(self) -> None:
        self._stated: list[int | None] = [None] * 4
        self._of_iterations: list[int | None] = [None] * 4

    def update(self, usage: msgspec.Raw) -> None:
        """Take over a `usage` object, or nothing if it is none."""
        counted = _decode(_COUNTED, usage)
        if counted is None:
            return
        self._stated = _newest(self._stated, counted.counts())
        iterations = _decode(_ITERATIONS, counted.iterations)
        if iterations:
            self._of_iterations = _sums([iteration.counts() for iteration in iterations])

    @property
    def input(self) -> int | None:
        return self._largest()[0]

    @property
    def output(self) -> int | None:
        return self._largest()[1]

    def usage(self, input_when_unknown: int = 0) -> Usage:
        """As a usage; what is not known counts as nothing, but for the input."""
        counts = self._largest()
        return Usage(
            input=input_when_unknown if counts[0] is None else counts[0],
            output=counts[1] or 0,
            cache_write=counts[2] or 0,
            cache_read=counts[3] or 0,
        )

    def _largest(self) -> list[int | None]:
        return [
            max((count for count in pair if count is not None), default=None)
            for pair in zip(self._stated, self._of_iterations, strict=True)
        ]


def read_event(data: bytes) -> Event:
    """The event that `data` holds; one without a type if it holds none."""
    return _decode(_EVENT, data) or Event()


def read_usage(body: bytes) -> msgspec.Raw:
    """The `usage` of a whole message; empty if there is none."""
    message = _decode(_MESSAGE, body)
    return _NONE if message is None else message.usage


def usage_of_start(event: Event) -> msgspec.Raw:
    """The `usage` of a `message_start`; empty if there is none."""
    return read_usage(bytes(event.message))


def _decode(decoder: msgspec.json.Decoder[T], data: bytes | msgspec.Raw) -> T | None:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _newest(before: list[int | None], stated: list[int | None]) -> list[int | None]:
    return [old if new is None else new for old, new in zip(before, stated, strict=True)]


def _sums(iterations: Sequence[list[int | None]]) -> list[int | None]:
    columns = zip(*iterations, strict=True)
    return [min(sum(count or 0 for count in column), MOST_BELIEVED_TOKENS) for column in columns]


def _believed(written: bytes) -> int | None:
    """A count that makes sense; a negative one counts as nothing."""
    if not _COUNT.fullmatch(written):
        return None
    count = int(written)
    return max(0, count) if count <= MOST_BELIEVED_TOKENS else None
