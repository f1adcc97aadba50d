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


def read_object(data: bytes | msgspec.Raw) -> Fields:
    """The names and raw values of one JSON object; the values are not looked into, only passed over.

    Raises `msgspec.ValidationError` for other JSON, `msgspec.DecodeError`, `UnicodeDecodeError` or `RecursionError`
    for what is none, and `NameTwice` or `TooManyNames`. All of them may hold pieces of `data`: drop them.
    """
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
