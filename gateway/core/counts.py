"""Counts as a provider states them: believed one by one, and only as far as they make sense.

An object of counts is read in one go, which is fast and nearly always all there is to do. Where that fails it is
read field by field, and an odd value spoils none of the others:

    {"input_tokens": 25, "output_tokens": 90}       25 and 90, in one go
    {"input_tokens": 25, "output_tokens": "many"}   25 and `None`, field by field
"""

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Generic, TypeVar

import msgspec

from gateway.core.usage import Usage

MOST_BELIEVED_TOKENS = 10**12
"""A count beyond this is no count, so no sum of rows can overflow; the request is estimated instead."""

NOTHING = msgspec.Raw(b"")
"""The value of a field that does not stand there."""

Count = Annotated[int, msgspec.Meta(ge=0, le=MOST_BELIEVED_TOKENS)]
"""A count that needs no second look."""

_COUNT = re.compile(rb"-?\d{1,4000}", re.ASCII)
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)


class Reported(msgspec.Struct, frozen=True, kw_only=True, gc=False):
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


class Form(Generic[S]):
    """Reads objects of one form: in one go, or field by field."""

    __slots__ = ("_fields", "_readers", "_struct", "_whole")

    def __init__(self, struct: type[S], **readers: Callable[[msgspec.Raw], object]) -> None:
        """`readers` are for the fields of `struct` that are no counts. A reader never raises: what makes no sense
        to it becomes the default."""
        self._struct = struct
        self._whole = msgspec.json.Decoder(struct)
        self._readers = {name: readers.get(name, believed) for name in struct.__struct_fields__}
        fields = [(name, msgspec.Raw, NOTHING) for name in self._readers]
        self._fields = msgspec.json.Decoder(msgspec.defstruct(f"{struct.__name__}Fields", fields))

    def read(self, data: bytes | msgspec.Raw) -> S | None:
        """`None` if `data` is no object."""
        try:
            return self._whole.decode(data)
        except _UNREADABLE:
            return self._read_fields(data)

    def _read_fields(self, data: bytes | msgspec.Raw) -> S | None:
        fields = decode(self._fields, data)
        if fields is None:
            return None
        raws = {name: getattr(fields, name) for name in self._readers}
        return self._struct(**{name: self._readers[name](raw) for name, raw in raws.items() if bytes(raw)})


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
    except _UNREADABLE:
        return None
