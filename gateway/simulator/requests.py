"""What the simulated provider reads of a request: the model, the sizes, the page of a list. No I/O here."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gateway.simulator.scripts import BYTES_PER_TOKEN, Ask, Script

_DATE_SUFFIX = re.compile(r"-\d{8}$")
_BASE64_DATA = re.compile(rb'"data"\s*:\s*"[^"\\]*"')
_IMAGE_TOKENS = 1_500
"""Near the most that an image of usual size costs (1,568), whatever its base64 weighs."""
_MAX_PAGE = 1_000
_DEFAULT_PAGE = 20


class Refusal(Exception):
    """The provider says no by itself, as the real one would."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.script = Script(status=status, error_message=message)


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
        input_tokens=_input_tokens(content),
        max_tokens=content.max_tokens,
        streams=content.stream,
        tool=chosen or "simulated_tool",
        must_use_tool=bool(tools) and choice is not None and choice.type in ("any", "tool"),
    )


def count_tokens(body: bytes) -> dict[str, Any]:
    """The answer of `POST /v1/messages/count_tokens`. Raises `Refusal`."""
    return {"input_tokens": _input_tokens(_read(body))}


def _read(body: bytes) -> _Body:
    try:
        return _BODY.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refusal(400, f"The request body is not valid: {error}") from None


def _input_tokens(content: _Body) -> int:
    """A quarter of the text's bytes, as providers count on average; images cost the same each."""
    tokens = 0
    for part in (content.messages, content.system, content.tools):
        text, images = bytes(part), 0
        if b'"base64"' in text:
            text, images = _BASE64_DATA.subn(b"", text)
        tokens += -(-len(text) // BYTES_PER_TOKEN) + images * _IMAGE_TOKENS
    return tokens


class Catalog:
    """The models that the provider has. A name without its date suffix counts."""

    def __init__(self, models: Sequence[str], *, accept_any: bool) -> None:
        self._models = tuple(models)
        self._by_name = {_DATE_SUFFIX.sub("", model): model for model in models} | {name: name for name in models}
        self._accept_any = accept_any

    def check(self, name: str) -> None:
        """Raises `Refusal` for a model that is not there."""
        if not self._accept_any and name not in self._by_name:
            raise Refusal(404, f"model: {name}")

    def one(self, name: str) -> dict[str, Any]:
        """The answer of `GET /v1/models/{id}`. Raises `Refusal`."""
        self.check(name)
        return _model(self._by_name.get(name, name))

    def page(self, query: Mapping[str, str]) -> dict[str, Any]:
        """The answer of `GET /v1/models`, paged by `limit` and `after_id` or `before_id`. Raises `Refusal`."""
        limit = _limit(query.get("limit", str(_DEFAULT_PAGE)))
        if "before_id" in query:
            rest = self._models[: self._index(query["before_id"])]
            shown = rest[-limit:]
        else:
            rest = self._models[self._index(query["after_id"]) + 1 if "after_id" in query else 0 :]
            shown = rest[:limit]
        return {
            "data": [_model(name) for name in shown],
            "has_more": len(rest) > len(shown),
            "first_id": shown[0] if shown else None,
            "last_id": shown[-1] if shown else None,
        }

    def _index(self, cursor: str) -> int:
        if cursor not in self._models:
            raise Refusal(400, "after_id and before_id: not the id of a model")
        return self._models.index(cursor)


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= _MAX_PAGE):
        raise Refusal(400, f"limit: a number from 1 to {_MAX_PAGE}")
    return int(text)


def _model(name: str) -> dict[str, Any]:
    return {
        "type": "model",
        "id": name,
        "display_name": name.replace("-", " ").title(),
        "created_at": "2026-01-01T00:00:00Z",
        "max_input_tokens": 200_000,
        "max_tokens": 64_000,
        "lifecycle": "active",
    }
