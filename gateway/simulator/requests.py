"""What the simulated provider reads of a request to Anthropic's endpoints, and how it says no. No I/O here."""

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from gateway.simulator.content import BYTES_PER_TOKEN
from gateway.simulator.protocols import Protocol
from gateway.simulator.scripts import Ask, Script

_BASE64_DATA = re.compile(rb'"data"\s*:\s*"[^"\\]*"')
_BASE64_MARKS = (b'"base64"', b'"input_audio"')
"""One of them stands near such data: Anthropic's sources, OpenAI's recordings."""
_DATA_URL = re.compile(rb'"data:[^"\\,]*;base64,[^"\\]*"')
_IMAGE_TOKENS = 1_500
"""Near the most that an image of usual size costs (1,568), whatever its base64 weighs."""


class Refusal(Exception):
    """The provider says no by itself, as the real one would."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.script = Script(status=status, error_message=message, error_code=code, error_param=param)


def wrong_openai_key(key: str) -> Refusal:
    """The real one quotes the key's ends: what a gateway must not pass on (PROTOCOLS B.7)."""
    advice = "You can find your API key at https://platform.openai.com/account/api-keys."
    if not key:
        return Refusal(401, f"You didn't provide an API key. {advice}")
    shown = f"{key[:3]}{'*' * 20}{key[-4:]}"
    return Refusal(401, f"Incorrect API key provided: {shown}. {advice}")


def unknown_path(protocol: Protocol, method: str, path: str) -> Refusal:
    is_openai = protocol.name == "openai"
    return Refusal(404, f"Invalid URL ({method} {path})" if is_openai else "Not found")


class _Tool(msgspec.Struct):
    name: str


class _ToolChoice(msgspec.Struct):
    type: str
    name: str | None = None


class _Body(msgspec.Struct):
    model: str
    messages: msgspec.Raw
    max_tokens: int | None = None
    stream: bool = False
    system: msgspec.Raw = msgspec.Raw()
    tools: msgspec.Raw = msgspec.Raw()
    tool_choice: _ToolChoice | None = None


_BODY = msgspec.json.Decoder(_Body)
_TOOLS = msgspec.json.Decoder(list[_Tool])


def read_ask(body: bytes) -> Ask:
    """What `POST /v1/messages` asks for. Raises `Refusal`."""
    content = _read(body)
    if content.max_tokens is None:
        raise Refusal(400, "max_tokens: Field required")
    choice = content.tool_choice
    tools = _TOOLS.decode(content.tools) if content.tools else []
    chosen = (choice.name if choice else None) or (tools[0].name if tools else None)
    return Ask(
        model=content.model,
        input_tokens=tokens_of((content.messages, content.system, content.tools)),
        max_tokens=content.max_tokens,
        streams=content.stream,
        tool=chosen or "simulated_tool",
        must_use_tool=bool(tools) and choice is not None and choice.type in ("any", "tool"),
    )


def count_tokens(body: bytes) -> dict[str, Any]:
    """The answer of `POST /v1/messages/count_tokens`. Raises `Refusal`."""
    content = _read(body)
    return {"input_tokens": tokens_of((content.messages, content.system, content.tools))}


def _read(body: bytes) -> _Body:
    try:
        return _BODY.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refusal(400, f"The request body is not valid: {error}") from None


def tokens_of(parts: Iterable[bytes | msgspec.Raw]) -> int:
    """A quarter of the text's bytes, as providers count on average; images cost the same each."""
    tokens = 0
    for part in parts:
        text, images = bytes(part), 0
        if any(mark in text for mark in _BASE64_MARKS):
            text, images = _BASE64_DATA.subn(b"", text)
        text, more_images = _DATA_URL.subn(b"", text) if b";base64," in text else (text, 0)
        tokens += -(-len(text) // BYTES_PER_TOKEN) + (images + more_images) * _IMAGE_TOKENS
    return tokens
