"""How many input tokens a request may use at most, estimated from its bytes.

Text: three bytes a token, over the whole body. Prose has four to five, code about three, and names and brackets
of the JSON itself count too, so this is rarely too low (PROTOCOLS H). Pictures are base64 in the body and would
count a hundredfold: their bytes are left out, and each holds the most that a picture can cost. What the body does
not show at all - files by id or address, PDFs, tools that the provider runs - holds a fixed allowance each.

    80 kB of text                             26,667
    20 kB of text and a 1 MB picture          6,667 + 4,784
"""

from collections.abc import Iterator, Mapping

import msgspec

from gateway.core.settings import Settings

BYTES_PER_TOKEN = 3

_MENTIONS = (b'"image"', b'"document"', b'"container_upload"', b"\\u")
"""Without any of these in the body there is nothing to look for; an escape could spell one of the others."""

_CLIENT_TOOLS = ("custom", "bash_", "text_editor_", "computer_", "memory_")
"""Tools that the client runs: what they give back comes in a later request."""


class _Source(msgspec.Struct):
    type: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"")


class _Block(msgspec.Struct):
    type: str | None = None
    source: str | _Source | None = None
    content: "str | list[_Block] | _Block | None" = None


class _Message(msgspec.Struct):
    content: str | list[_Block] | None = None


class _Tool(msgspec.Struct):
    type: str | None = None


_MESSAGES = msgspec.json.Decoder(list[_Message])
_TOOLS = msgspec.json.Decoder(list[_Tool])


class Estimator:
    """Estimates with the operator's allowances for what the body does not show."""

    __slots__ = ("_image_tokens", "_unbounded_tokens")

    def __init__(self, settings: Settings) -> None:
        self._image_tokens = settings.image_tokens
        self._unbounded_tokens = settings.unbounded_input_tokens

    def input_tokens(self, body: bytes, fields: Mapping[str, msgspec.Raw]) -> int:
        """The bound for a Messages body whose top level is `fields`."""
        hidden_bytes, extra_tokens = 0, 0
        if any(mention in body for mention in _MENTIONS):
            hidden_bytes, extra_tokens = self._of_messages(fields)
        extra_tokens += self._unbounded_tokens * (_server_tools(fields) + ("mcp_servers" in fields))
        return -(-(len(body) - hidden_bytes) // BYTES_PER_TOKEN) + extra_tokens

    def _of_messages(self, fields: Mapping[str, msgspec.Raw]) -> tuple[int, int]:
        """(bytes that are no text, tokens held for them)."""
        hidden_bytes, tokens = 0, 0
        try:
            messages = _MESSAGES.decode(fields.get("messages", b"[]"))
        except (msgspec.MsgspecError, RecursionError):
            return 0, self._unbounded_tokens  # a shape we do not know: all of it counts as text, and more
        for block in (block for message in messages for block in _blocks(message.content)):
            source = block.source if isinstance(block.source, _Source) else _Source()
            if block.type == "image":
                tokens += self._image_tokens
                hidden_bytes += len(bytes(source.data))
            elif block.type == "document" and source.type not in ("text", "content"):
                tokens += self._unbounded_tokens
                hidden_bytes += len(bytes(source.data))
            elif block.type == "container_upload":
                tokens += self._unbounded_tokens
        return hidden_bytes, tokens


def _blocks(content: str | list[_Block] | _Block | None) -> Iterator[_Block]:
    """All blocks of a content, those within tool results and documents too."""
    if isinstance(content, _Block):
        content = [content]
    if isinstance(content, list):
        for block in content:
            yield block
            yield from _blocks(block.content)


def _server_tools(fields: Mapping[str, msgspec.Raw]) -> int:
    raw = fields.get("tools")
    if raw is None:
        return 0
    try:
        tools = _TOOLS.decode(raw)
    except (msgspec.MsgspecError, RecursionError):
        return 1
    return sum(1 for tool in tools if tool.type and not tool.type.startswith(_CLIENT_TOOLS))
