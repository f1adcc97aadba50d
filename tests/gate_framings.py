"""How a request says where its body ends: in ways that are taken, and in ways that two servers may read in two."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

ECHO = "mirrormirror"
"""Stands in addresses, headers and bodies; no answer of the gateway may hold it."""


@dataclass(frozen=True, slots=True)
class Framing:
    """Version, header lines and body."""

    headers: tuple[str, ...]
    wrap: Callable[[bytes], bytes]
    version: str = "HTTP/1.1"


def _chunked(body: bytes, extension: bytes = b"", trailer: bytes = b"") -> bytes:
    halves = body[: len(body) // 2], body[len(body) // 2 :]
    chunks = b"".join(b"%x%b\r\n%b\r\n" % (len(half), extension, half) for half in halves)
    return chunks + b"0\r\n" + trailer + b"\r\n"


def _plain(body: bytes) -> bytes:
    return body


LENGTH = Framing(("content-length: {length}",), _plain)
CHUNKED = Framing(("transfer-encoding: chunked",), _chunked)
FRAMINGS: Mapping[str, Framing] = {
    "length": LENGTH,
    "chunks": CHUNKED,
    "chunks, in capitals": Framing(("Transfer-Encoding: CHUNKED",), _chunked),
    "chunk extensions": Framing(CHUNKED.headers, lambda body: _chunked(body, extension=b";a=" + ECHO.encode())),
    "trailers": Framing(CHUNKED.headers, lambda body: _chunked(body, trailer=b"x-api-key: other\r\n")),
    "HTTP/1.0": Framing(LENGTH.headers, _plain, "HTTP/1.0"),
    "no body": Framing((), lambda _body: b""),
}
"""What may be taken; all but the last carry a whole body."""
BAD_FRAMINGS: Mapping[str, Framing] = {
    "gzip, chunked": Framing(("transfer-encoding: gzip, chunked",), _chunked),
    "chunked, gzip": Framing(("transfer-encoding: chunked, gzip",), _chunked),
    "chunked, chunked": Framing(("transfer-encoding: chunked, chunked",), _chunked),
    "chunked twice": Framing(("transfer-encoding: chunked",) * 2, _chunked),
    "chunked, identity": Framing(("transfer-encoding: chunked, identity",), _chunked),
    "identity": Framing(("transfer-encoding: identity",), _chunked),
    "xchunked": Framing(("transfer-encoding: xchunked",), _chunked),
    "chunked;q=1": Framing(("transfer-encoding: chunked;q=1",), _chunked),
    "chunked in quotes": Framing(('transfer-encoding: "chunked"',), _chunked),
    "length and chunks": Framing((*LENGTH.headers, *CHUNKED.headers), _chunked),
    "chunks and length": Framing((*CHUNKED.headers, "content-length: 4"), _chunked),
    "chunks in HTTP/1.0": Framing(CHUNKED.headers, _chunked, "HTTP/1.0"),
    "two lengths": Framing(("content-length: {length}", "content-length: 5"), _plain),
    "a length twice": Framing(LENGTH.headers * 2, _plain),
    "a list of lengths": Framing(("content-length: {length}, {length}",), _plain),
    "a length with a sign": Framing(("content-length: +{length}",), _plain),
    "a negative length": Framing(("content-length: -1",), _plain),
    "a length in hex": Framing(("content-length: 0x20",), _plain),
    "a length beyond counting": Framing(("content-length: 99999999999999999999999",), _plain),
    "a space before the colon": Framing(("transfer-encoding : chunked",), _chunked),
    "a folded line": Framing(("content-length: {length}\r\n folded",), _plain),
    "a bare line feed": Framing(("x: y\ntransfer-encoding: chunked",), _chunked),
    "a NUL": Framing((*LENGTH.headers, "x: a\0b"), _plain),
    "a size with a sign": Framing(CHUNKED.headers, lambda body: b"+" + _chunked(body)),
    "a size in 0x": Framing(CHUNKED.headers, lambda body: b"0x" + _chunked(body)),
    "a size beyond counting": Framing(CHUNKED.headers, lambda body: b"f" * 20 + b"\r\n" + body),
    "HTTP/2": Framing(LENGTH.headers, _plain, "HTTP/2.0"),
    "HTTP/0.9": Framing(LENGTH.headers, _plain, "HTTP/0.9"),
    "another protocol": Framing(LENGTH.headers, _plain, "ICY/1.0"),
}
"""What two servers in a row may read in two ways: none of it is taken."""
