"""How many input tokens a request may use at most, estimated from its bytes.

Text: three bytes a token, over the whole body. Prose has four to five, code about three, and names and brackets
of the JSON itself count too, so this is rarely too low (PROTOCOLS H). Pictures are base64 in the body and would
count a hundredfold: their bytes are left out, and each holds the most that a picture can cost. What the body does
not show at all - files by id or address, PDFs, tools that the provider runs - holds a fixed allowance each.

    80 kB of text                             26,667
    20 kB of text and a 1 MB picture          6,667 + 4,784

Here: what all protocols share, and Anthropic's messages; openai_estimate.py has OpenAI's bodies.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import msgspec

from gateway.core.objects import Fields, Unclear, read_object
from gateway.core.settings import Settings

BYTES_PER_TOKEN = 3
DEFAULT_OUTPUT_TOKENS = 16_000
"""Held for the output of a request that sets no maximum, unless the operator says otherwise."""

ASCII_ESCAPE = b"\\u00"
"""How a name could be spelled that is searched for: all of them are ASCII."""
_MENTIONS = (b'"image"', b'"document"', b'"container_upload"', ASCII_ESCAPE)
"""Without any of these in the body there is nothing to look for."""

_PIECE_BYTES = 2**20

_CLIENT_TOOLS = ("custom", "bash_", "text_editor_", "computer_", "memory_")
"""Tools that the client runs: what they give back comes in a later request."""


_MOST_BLOCKS = 10_000
_MOST_COMMAS = 300_000
"""A list with more of either is not looked through, which is work and memory: all of it counts as text. A request
that fills the largest context has fewer."""

_LIST = msgspec.json.Decoder(list[msgspec.Raw] | None)
_TEXT = msgspec.json.Decoder(str | None)
NULL = msgspec.Raw(b"null")
_EMPTY = msgspec.Raw(b"")

_NOT_AS_EXPECTED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, Unclear)


class InputBound(NamedTuple):
    """The most tokens that the input of a request may be."""

    tokens: int
    hosted_tools: int
    """Of `tokens`, what is held for tools that the provider runs: they may read so much, or nothing."""


class Estimator:
    """Estimates with the operator's allowances for what the body does not show."""

    __slots__ = ("default_output_tokens", "image_tokens", "unbounded_tokens")

    def __init__(self, settings: Settings, default_output_tokens: int = DEFAULT_OUTPUT_TOKENS) -> None:
        self.image_tokens = settings.image_tokens
        self.unbounded_tokens = settings.unbounded_input_tokens
        self.default_output_tokens = default_output_tokens

    def of_messages(self, body: bytes, fields: Fields) -> InputBound:
        """The bound for a Messages body whose top level is `fields`."""
        hidden_bytes, extra_tokens = 0, 0
        if mentions_any(_MENTIONS, body):
            hidden_bytes, extra_tokens = self.of_blocks(_all_blocks(fields), self._of_block)
        hosted_tools = self.unbounded_tokens * _hosted_tools(fields)
        return InputBound(text_tokens(len(body) - hidden_bytes) + extra_tokens + hosted_tools, hosted_tools)

    def of_blocks(self, blocks: Iterable[Fields], of_block: Callable[[Fields], tuple[int, int]]) -> tuple[int, int]:
        """(bytes that are no text, tokens held for them), summed up over what `of_block` says of each block.

        A shape that is not known counts as text, and more.
        """
        hidden_bytes, tokens = 0, 0
        try:
            for number, block in enumerate(blocks):
                if number == _MOST_BLOCKS:
                    raise Unclear
                of_block_bytes, of_block_tokens = of_block(block)
                hidden_bytes += of_block_bytes
                tokens += of_block_tokens
        except _NOT_AS_EXPECTED:
            return 0, self.unbounded_tokens
        return hidden_bytes, tokens

    def _of_block(self, block: Fields) -> tuple[int, int]:
        source = as_object(block.get("source", NULL))
        data_bytes = length(source.get("data", _EMPTY))
        match as_text(block.get("type", NULL)):
            case "image":
                return data_bytes, self.image_tokens
            case "document" if as_text(source.get("type", NULL)) not in ("text", "content"):
                return data_bytes, self.unbounded_tokens
            case "container_upload":
                return 0, self.unbounded_tokens
            case _:
                return 0, 0


def text_tokens(text_bytes: int) -> int:
    """The bound for so much text."""
    return -(-text_bytes // BYTES_PER_TOKEN)


def mentions_any(mentions: Iterable[bytes], body: bytes) -> bool:
    """Whether there is anything to look for. Piece by piece, so that other threads get their turn between two."""
    for start in range(0, len(body), _PIECE_BYTES):
        for mention in mentions:
            if body.find(mention, start, start + _PIECE_BYTES + len(mention)) >= 0:
                return True
    return False


def count_tools(fields: Fields, is_counted: Callable[[str], bool]) -> int:
    """How many `tools` have a type that is counted; a list of a shape that is not known counts as one of them."""
    try:
        tools = [read_object(tool) for tool in as_list(fields.get("tools", NULL))]
        types = [as_text(tool.get("type", NULL)) for tool in tools]
    except _NOT_AS_EXPECTED:
        return 1
    return sum(map(is_counted, types))


def as_object(raw: msgspec.Raw) -> Fields:
    """The fields of an object; nothing of another value."""
    return read_object(raw) if starts_with(b"{", raw) else {}


def as_list(raw: msgspec.Raw) -> list[msgspec.Raw]:
    """The items of a list or of null. Raises `Unclear` for a list that is too long to be looked through."""
    if length(raw) > _MOST_COMMAS and bytes(raw).count(b",") > _MOST_COMMAS:
        raise Unclear
    return _LIST.decode(raw) or []


def as_text(raw: msgspec.Raw) -> str:
    """A text; an empty one of null."""
    return _TEXT.decode(raw) or ""


def starts_with(start: bytes, raw: msgspec.Raw) -> bool:
    return memoryview(raw)[: len(start)] == start


def length(raw: msgspec.Raw) -> int:
    """In bytes; without a copy of what may be a large picture."""
    return memoryview(raw).nbytes


def _all_blocks(fields: Fields) -> Iterator[Fields]:
    for message in as_list(fields.get("messages", NULL)):
        yield from _blocks(read_object(message).get("content", NULL))


def _blocks(content: msgspec.Raw) -> Iterator[Fields]:
    """All blocks of a content, those within tool results and documents too. It may be a text or one block."""
    items = as_list(content) if starts_with(b"[", content) else [content]
    for item in items:
        block = as_object(item)
        if block:
            yield block
            yield from _blocks(block.get("content", NULL))
            yield from _blocks(as_object(block.get("source", NULL)).get("content", NULL))


def _hosted_tools(fields: Fields) -> int:
    """How many tools the provider runs: what they read is input too."""
    if "tools" not in fields and "mcp_servers" not in fields:
        return 0
    try:
        servers = len(as_list(fields.get("mcp_servers", NULL)))
    except _NOT_AS_EXPECTED:
        servers = 1
    return servers + count_tools(fields, lambda kind: bool(kind) and not kind.startswith(_CLIENT_TOOLS))
