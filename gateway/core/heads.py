"""The form that the head of a request must have, before anything else is made of it.

A parser of HTTP lets more pass than any client of ours needs, and what two servers read in different ways is how
requests are smuggled: an absolute address that overrides Host, an encoding that HTTP/1.0 does not have, a Host that
is none. All of it is refused here (RFC 9112, 3.2 and 6.1; RFC 9110, 4.2).
"""

import re
from collections.abc import Mapping

from gateway.core.errors import BadRequest

MAX_HOST_LENGTH = 255
_VERSIONS = {(1, 0), (1, 1)}
_HOST = re.compile(r"(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?", re.ASCII)
"""A name or an address, and perhaps a port; no user, path or query."""


class UnsafeHead(BadRequest):
    """A head that servers read in different ways. Its connection carries no other request."""


def check_head(target: str, version: tuple[int, int], headers: Mapping[str, str]) -> None:
    """Raise `UnsafeHead` unless the version is one of HTTP/1, the target a path, Host a host, and the body's coding
    one that we take.

    `target` is what stood in the request line, and `headers` finds names in any case.
    """
    if version not in _VERSIONS:
        raise UnsafeHead("HTTP/1.1 is spoken here, and HTTP/1.0.")
    if not target.startswith("/") or "#" in target:
        raise UnsafeHead("The request line must name a path, such as /v1/messages, and no other address.")
    host = headers.get("host", "")
    if (host or version >= (1, 1)) and not (len(host) <= MAX_HOST_LENGTH and _HOST.fullmatch(host)):
        raise UnsafeHead("The Host header does not name a host.")
    coding = headers.get("transfer-encoding")
    if coding is not None and (version < (1, 1) or coding.lower() != "chunked"):
        raise UnsafeHead("A request body may be sent with its length or in chunks, and in no other coding.")
