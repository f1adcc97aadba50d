"""What a request for a page brings along: a key in a form or a header, a ticket in the address.

A key in an address is refused even if nothing would have read it: addresses stay in histories and logs, and the
sender had better know.
"""

import asyncio
from urllib.parse import parse_qs

from aiohttp import web

from gateway.core import keys
from gateway.core.errors import BadRequest, BodyTooLarge, InvalidKey, UnsupportedBody

MAX_FORM_BYTES = 4_096
FORM_TIMEOUT_SECONDS = 10
FORM_TYPE = "application/x-www-form-urlencoded"

_LINKED_FIELDS = frozenset({"ticket", "before"})
"""All that an address of ours may carry behind its question mark."""


def check_address(request: web.BaseRequest) -> None:
    """Refuse an address that carries anything but what our own links do. Raises `BadRequest`."""
    if not request.query.keys() <= _LINKED_FIELDS or keys.PREFIX in request.query_string:
        raise BadRequest(
            "An API key never belongs in an address: addresses stay in histories and logs. Type it into the form"
            " at /usage, or send it in the x-api-key header. If a key of yours was in this address, ask the"
            " administrator for a new one."
        )


def header_key(request: web.BaseRequest) -> str:
    """The key out of `x-api-key` or `Authorization: Bearer`; of two, the one that is formed like ours.

    Raises `InvalidKey` when there are two different ones of ours. '' when there is none.
    """
    scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
    sent = [request.headers.get("x-api-key", ""), bearer.strip() if scheme.lower() == "bearer" else ""]
    ours = {text for text in sent if keys.parse(text) is not None}
    if len(ours) > 1:
        raise InvalidKey("Two different API keys were sent; send one.")
    return ours.pop() if ours else sent[0] or sent[1]


async def read_typed_key(request: web.BaseRequest) -> str:
    """The field `key` of a posted form. Raises a `GatewayError`.

    Not `request.post()`: that accepts files, and would write large ones to a temporary folder.
    """
    if request.content_type != FORM_TYPE or "Content-Encoding" in request.headers:
        raise UnsupportedBody(f"The form is sent as {FORM_TYPE}.")
    try:
        async with asyncio.timeout(FORM_TIMEOUT_SECONDS):
            body = await _read_body(request)
        fields = parse_qs(body.decode("latin-1"), max_num_fields=10)
    except TimeoutError:
        raise BadRequest("The form did not arrive in time.") from None
    except ValueError:
        raise BadRequest("The form has too many fields.") from None
    key = fields.get("key", [""])[0].strip()
    if not key:
        raise BadRequest("Type an API key first.")
    return key


async def _read_body(request: web.BaseRequest) -> bytes:
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            raise BodyTooLarge("This form is larger than an API key can be.")
    return bytes(body)
