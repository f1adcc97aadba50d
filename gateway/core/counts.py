"""Counts as a provider states them: believed one by one, and only as far as they make sense."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from gateway.core.usage import Usage

MOST_BELIEVED_TOKENS = 10**12
"""A count beyond this is no count, so no sum of rows can overflow; the request is estimated instead."""

NOTHING = msgspec.Raw(b"")
"""The value of a field that does not stand there."""

_COUNT = re.compile(rb"-?\d{1,4000}", re.ASCII)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """What a provider has said so far of one request, in the form of a usage; `None`: not yet."""

    input: int | None = None
    output: int | None = None
    cache_write: int | None = None
    cache_read: int | None = None
    served_by: str = ""
    """The model that answered in place of the one that was asked for; '' = none did."""

    def usage(self, input_when_unknown: int = 0) -> Usage:
        """As a usage; what is not known counts as nothing, but for the input."""
        return Usage(
            input=input_when_unknown if self.input is None else self.input,
            output=self.output or 0,
            cache_write=self.cache_write or 0,
            cache_read=self.cache_read or 0,
        )


def believed(raw: msgspec.Raw) -> int | None:
    """A count that makes sense; a negative one counts as nothing."""
    written = bytes(raw)
    if not _COUNT.fullmatch(written):
        return None
    count = int(written)
    return max(0, count) if count <= MOST_BELIEVED_TOKENS else None


def newest(before: Sequence[int | None], stated: Sequence[int | None]) -> list[int | None]:
    """Counts are cumulative: each one stated again replaces the one before."""
    return [old if new is None else new for old, new in zip(before, stated, strict=True)]


def decode(decoder: msgspec.json.Decoder[T], data: bytes | msgspec.Raw) -> T | None:
    """What `data` holds, or `None` if it is not of that form: an upstream may send anything."""
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
