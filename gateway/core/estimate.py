"""How many input tokens a request may use at most, estimated from its bytes.

Text: three bytes a token, over the whole body. Prose has four to five, code about three, and names and brackets
of the JSON itself count too, so this is rarely too low (PROTOCOLS H). Pictures are base64 in the body and would
count a hundredfold: their bytes are left out, and each holds the most that a picture can cost. What the body does
not show at all - files by id or address, PDFs, tools that the provider runs - holds a fixed allowance each.

    80 kB of text                             26,667
    20 kB of text and a 1 MB picture          6,667 + 4,784
"""

from collections.abc import Iterator

import msgspec

from gateway.core.objects import Fields, Unclear, read_object
from gateway.core.settings import Settings

BYTES_PER_TOKEN = 3

_MENTIONS = (b'"image"', b'"document"', b'"container_upload"', b"\\u")
"""Without any of these in the body there is nothing to look for; an escape could spell one of the others."""

_CLIENT_TOOLS = ("custom", "bash_", "text_editor_", "computer_", "memory_")
"""Tools that the client runs: what they give back comes in a later request."""


_MOST_BLOCKS = 10_000
_MOST_COMMAS = 300_000
"""A list with more of either is not looked through, which is work and memory: all of it counts as text. A request
that fills the largest context has fewer."""

_LIST = msgspec.json.Decoder(list[msgspec.Raw] | None)
_TEXT = msgspec.json.Decoder(str | None)
_NOTHING = msgspec.Raw(b"null")
_EMPTY = msgspec.Raw(b"")


class Estimator:
    """Estimates with the operator's allowances for what the body does not show."""

    __slots__ = ("_image_tokens", "_unbounded_tokens")

    def __init__(self, settings: Settings) -> None:
        self._image_tokens = settings.image_tokens
        self._unbounded_tokens = settings.unbounded_input_tokens

    def input_tokens(self, body: bytes, fields: Fields) -> int:
        """The bound for a Messages body whose top level is `fields`."""
        hidden_bytes, extra_tokens = 0, 0
        if any(mention in body for mention in _MENTIONS):
            hidden_bytes, extra_tokens = self._of_messages(fields)
        extra_tokens += self._unbounded_tokens * _reading_tools(fields)
        return -(-(len(body) - hidden_bytes) // BYTES_PER_TOKEN) + extra_tokens

    def _of_messages(self, fields: Fields) -> tuple[int, int]:
        """(bytes that are no text, tokens held for them). A shape that is not known counts as text, and more."""
        hidden_bytes, tokens = 0, 0
        try:
            for number, block in enumerate(_all_blocks(fields)):
                if number == _MOST_BLOCKS:
                    raise Unclear
                of_block_bytes, of_block_tokens = self._of_block(block)
                hidden_bytes += of_block_bytes
                tokens += of_block_tokens
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, Unclear):
            return 0, self._unbounded_tokens
        return hidden_bytes, tokens

    def _of_block(self, block: Fields) -> tuple[int, int]:
        source = _object(block.get("source", _NOTHING))
        data_bytes = _length(source.get("data", _EMPTY))
        match _text(block.get("type", _NOTHING)):
            case "image":
                return data_bytes, self._image_tokens
            case "document" if _text(source.get("type", _NOTHING)) not in ("text", "content"):
                return data_bytes, self._unbounded_tokens
            case "container_upload":
                return 0, self._unbounded_tokens
            case _:
                return 0, 0


def _all_blocks(fields: Fields) -> Iterator[Fields]:
    for message in _list(fields.get("messages", _NOTHING)):
        yield from _blocks(read_object(message).get("content", _NOTHING))


def _blocks(content: msgspec.Raw) -> Iterator[Fields]:
    """All blocks of a content, those within tool results and documents too. It may be a text or one block."""
    items = _list(content) if _starts_with(b"[", content) else [content]
    for item in items:
        block = _object(item)
        if block:
            yield block
            yield from _blocks(block.get("content", _NOTHING))
            yield from _blocks(_object(block.get("source", _NOTHING)).get("content", _NOTHING))


def _object(raw: msgspec.Raw) -> Fields:
    return read_object(raw) if _starts_with(b"{", raw) else {}


def _list(raw: msgspec.Raw) -> list[msgspec.Raw]:
    if _length(raw) > _MOST_COMMAS and bytes(raw).count(b",") > _MOST_COMMAS:
        raise Unclear
    return _LIST.decode(raw) or []


def _starts_with(start: bytes, raw: msgspec.Raw) -> bool:
    return memoryview(raw)[:1] == start


def _length(raw: msgspec.Raw) -> int:
    """In bytes; without a copy of what may be a large picture."""
    return memoryview(raw).nbytes


def _text(raw: msgspec.Raw) -> str:
    return _TEXT.decode(raw) or ""


def _reading_tools(fields: Fields) -> int:
    """How many tools the provider runs: what they read is input too."""
    try:
        servers = _list(fields.get("mcp_servers", _NOTHING))
        tools = [read_object(tool) for tool in _list(fields.get("tools", _NOTHING))]
        types = [_text(tool.get("type", _NOTHING)) for tool in tools]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, Unclear):
        return 1
    return len(servers) + sum(1 for name in types if name and not name.startswith(_CLIENT_TOOLS))
