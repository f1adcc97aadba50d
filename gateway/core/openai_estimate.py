"""How many input tokens a request to OpenAI may use at most, estimated from its bytes as estimate.py does.

A picture holds the most that one can cost, whether its bytes stand in the body or its address does. What the body
does not show - sound, files, earlier responses, conversations, prompts and items by id, tools that the provider
runs - holds the operator's allowance each, and its base64 does not count as text (PROTOCOLS H).

    "input": "..." of 80 kB                                          26,667
    "previous_response_id" and 300 bytes                             50,000 + 100
    embeddings of [[1, 2], [3]]                                      3
"""

from collections.abc import Iterator

import msgspec

from gateway.core.counts import NOTHING
from gateway.core.estimate import (
    ASCII_ESCAPE,
    NULL,
    Estimator,
    InputBound,
    as_list,
    as_object,
    as_text,
    count_tools,
    length,
    mentions_any,
    starts_with,
    text_tokens,
)
from gateway.core.objects import Fields, read_object

_MENTIONS = (
    *(b"image", b'file"', b'audio"', b"video", b'screenshot"', b"_reference", b"_tools", b'"id"'),
    ASCII_ESCAPE,
)
"""Without any of these in the messages there is nothing to look for."""

_CLIENT_TOOLS = frozenset({"", "function", "custom", "local_shell", "apply_patch", "namespace", "tool_search"})
"""Tools that the client runs, and ways to write down such tools."""

_PICTURES = {
    "image_url": "image_url",
    "input_image": "image_url",
    "computer_screenshot": "image_url",
    "image_generation_call": "result",
}
_UNBOUNDED = {"input_audio": "input_audio", "file": "file", "input_file": "file_data", "video_url": "video_url"}
"""The types of blocks that are no text, and the fields that have what they hold."""

_PAYLOADS = ("url", "data", "file_data")
"""Where it stands if that field is an object."""

_BY_ID = ("previous_response_id", "conversation", "prompt")


def of_chat(body: bytes, fields: Fields, estimator: Estimator) -> InputBound:
    """The bound for a body of chat completions whose top level is `fields`."""
    hosted_tools = (_hosted_tools(fields) + _given(fields, "web_search_options")) * estimator.unbounded_tokens
    return InputBound(_of_items(body, fields.get("messages", NULL), estimator) + hosted_tools, hosted_tools)


def of_responses(body: bytes, fields: Fields, estimator: Estimator) -> InputBound:
    """The bound for a body of responses whose top level is `fields`."""
    hosted_tools = _hosted_tools(fields) * estimator.unbounded_tokens
    by_id = sum(_given(fields, name) for name in _BY_ID) * estimator.unbounded_tokens
    return InputBound(_of_items(body, fields.get("input", NULL), estimator) + by_id + hosted_tools, hosted_tools)


def of_embeddings(body: bytes, fields: Fields) -> int:
    """The bound for a body of embeddings: its text, or how many tokens its lists have."""
    given = bytes(fields.get("input", NULL))
    is_tokens = given.startswith(b"[") and not given.strip(b"[]0123456789, \t\r\n")
    return given.count(b",") + 1 if is_tokens else text_tokens(len(body))


def _of_items(body: bytes, items: msgspec.Raw, estimator: Estimator) -> int:
    if not mentions_any(_MENTIONS, body):
        return text_tokens(len(body))
    hidden_bytes, tokens = estimator.of_blocks(_blocks(items), lambda block: _of_block(block, estimator))
    return text_tokens(len(body) - hidden_bytes) + tokens


def _of_block(block: Fields, estimator: Estimator) -> tuple[int, int]:
    """(bytes that are no text, tokens held for them)."""
    kind = as_text(block.get("type", NULL))
    if kind in _PICTURES:
        return _payload_bytes(block, _PICTURES[kind]), estimator.image_tokens
    if kind in _UNBOUNDED:
        return _payload_bytes(block, _UNBOUNDED[kind]), estimator.unbounded_tokens
    is_reference = kind == "item_reference" or (not kind and "id" in block and "role" not in block)
    hidden_inputs = is_reference + _given(block, "audio") + _hosted_tools(block)
    return 0, hidden_inputs * estimator.unbounded_tokens


def _blocks(content: msgspec.Raw) -> Iterator[Fields]:
    """All blocks of a content, or of what a tool gave back. It may be a text or one block."""
    items = as_list(content) if starts_with(b"[", content) else [content]
    for item in items:
        block = as_object(item)
        if block:
            yield block
            yield from _blocks(block.get("content", NULL))
            yield from _blocks(block.get("output", NULL))


def _payload_bytes(block: Fields, name: str) -> int:
    raw = block.get(name, NOTHING)
    if not starts_with(b"{", raw):
        return length(raw)
    inner = read_object(raw)
    return max((length(inner[place]) for place in _PAYLOADS if place in inner), default=0)


def _hosted_tools(fields: Fields) -> int:
    """How many tools the provider runs: what they read is input too."""
    return count_tools(fields, lambda kind: kind not in _CLIENT_TOOLS) if "tools" in fields else 0


def _given(fields: Fields, name: str) -> int:
    return int(name in fields and bytes(fields[name]) != b"null")
