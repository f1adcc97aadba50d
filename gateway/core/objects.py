"""One level of a JSON object, strictly: each name once, each value as the bytes it stands in.

Two parsers could disagree about a name that stands there twice: one takes the first, another the last, and some
take no notice of case. Limits could then be held against one value and the provider go by the other. Such an object
is refused, while it is being read: at the second name, not after millions of them.
"""

from collections.abc import Mapping
from typing import cast

import msgspec

MOST_NAMES = 256
"""More than any protocol has."""

Fields = Mapping[str, msgspec.Raw]


class Unclear(Exception):
    """What an object says depends on who reads it, or takes too long to find out.

    No `ValueError`: the decoder would make its own error of that."""


class NameTwice(Unclear):
    """An object names a field twice, however spelled."""


class TooManyNames(Unclear):
    """An object names more fields than anybody needs."""


class _Name(str):
    """A name of a field. Being a type of its own, each one is shown to the decoder's hook."""

    __slots__ = ()


_PLAIN = msgspec.json.Decoder(dict[str, msgspec.Raw])
_MOST_PLAIN_BYTES = 64 * 2**10
"""So much is read to its end before its names are looked at: some thousands of them at most."""


def read_object(data: bytes | msgspec.Raw) -> Fields:
    """The names and raw values of one JSON object; the values are not looked into, only passed over.

    Raises `msgspec.ValidationError` for other JSON, `msgspec.DecodeError`, `UnicodeDecodeError` or `RecursionError`
    for what is none, and `NameTwice` or `TooManyNames`. All of them may hold pieces of `data`: drop them.
    """
    return _read_plain(data) or _read_name_by_name(data)


def _read_plain(data: bytes | msgspec.Raw) -> Fields | None:
    """The fields of a small object that is written as most clients do: each name once, in small letters of ASCII,
    and no white space between. `None`: it is not, or is no object at all.

    It is so if the bytes of its fields, with two quotes, a colon and a comma or brace for each, fill it: then
    nothing is left for a second value, an escape or white space.
    """
    data_bytes = memoryview(data).nbytes
    if data_bytes > _MOST_PLAIN_BYTES:
        return None
    try:
        fields = _PLAIN.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    names = "".join(fields)
    filled_bytes = len(names) + len(b"".join(fields.values())) + 4 * len(fields) + 1
    is_filled = filled_bytes == data_bytes and names.islower() and len(fields) <= MOST_NAMES
    return fields if is_filled else None


def _read_name_by_name(data: bytes | msgspec.Raw) -> Fields:
    """Any object. What is unclear about it is found at once, however large it is."""
    seen: set[str] = set()

    def see(_kind: type, name: str) -> _Name:
        folded = name.casefold()
        if folded in seen:
            raise NameTwice
        if len(seen) == MOST_NAMES:
            raise TooManyNames
        seen.add(folded)
        return _Name(name)

    return cast(Fields, msgspec.json.Decoder(dict[_Name, msgspec.Raw], dec_hook=see).decode(data))
