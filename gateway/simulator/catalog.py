"""The models that the provider has, in both shapes."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.simulator.protocols import CREATED, Protocol
from gateway.simulator.requests import Refusal

MODELS = ("claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-4-5-20251001")
OPENAI_MODELS = ("gpt-5.6", "gpt-5.6-mini-2026-07-15", "text-embedding-3-small")

_DATE_SUFFIX = re.compile(r"-(\d{8}|\d{4}-\d\d-\d\d)$")
_MAX_PAGE = 1_000
_DEFAULT_PAGE = 20


class Catalog:
    """The models of one protocol. A name without its date suffix counts."""

    def __init__(self, protocol: Protocol, models: Sequence[str], *, accept_any: bool) -> None:
        self._is_openai = protocol.name == "openai"
        self._models = tuple(models)
        self._by_name = {_DATE_SUFFIX.sub("", model): model for model in models} | {name: name for name in models}
        self._accept_any = accept_any

    def check(self, name: str) -> None:
        """Raises `Refusal` for a model that is not there."""
        if self._accept_any or name in self._by_name:
            return
        if self._is_openai:
            text = f"The model `{name}` does not exist or you do not have access to it."
            raise Refusal(404, text, code="model_not_found", param="model")
        raise Refusal(404, f"model: {name}")

    def one(self, name: str) -> dict[str, Any]:
        """The answer of `GET /v1/models/{id}`. Raises `Refusal`."""
        self.check(name)
        return self._model(self._by_name.get(name, name))

    def all(self, query: Mapping[str, str]) -> dict[str, Any]:
        """The answer of `GET /v1/models`; OpenAI's has no pages. Raises `Refusal`."""
        if not self._is_openai:
            return self.page(query)
        return {"object": "list", "data": [self._model(name) for name in self._models]}

    def page(self, query: Mapping[str, str]) -> dict[str, Any]:
        """Anthropic's, paged by `limit` and `after_id` or `before_id`. Raises `Refusal`."""
        limit = _limit(query.get("limit", str(_DEFAULT_PAGE)))
        if "before_id" in query:
            rest = self._models[: self._index(query["before_id"])]
            shown = rest[-limit:]
        else:
            rest = self._models[self._index(query["after_id"]) + 1 if "after_id" in query else 0 :]
            shown = rest[:limit]
        return {
            "data": [self._model(name) for name in shown],
            "has_more": len(rest) > len(shown),
            "first_id": shown[0] if shown else None,
            "last_id": shown[-1] if shown else None,
        }

    def _model(self, name: str) -> dict[str, Any]:
        return _openai_model(name) if self._is_openai else _anthropic_model(name)

    def _index(self, cursor: str) -> int:
        if cursor not in self._models:
            raise Refusal(400, "after_id and before_id: not the id of a model")
        return self._models.index(cursor)


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= _MAX_PAGE):
        raise Refusal(400, f"limit: a number from 1 to {_MAX_PAGE}")
    return int(text)


def _openai_model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": CREATED, "owned_by": "system"}


def _anthropic_model(name: str) -> dict[str, Any]:
    return {
        "type": "model",
        "id": name,
        "display_name": name.replace("-", " ").title(),
        "created_at": "2026-01-01T00:00:00Z",
        "max_input_tokens": 200_000,
        "max_tokens": 64_000,
        "lifecycle": "active",
    }
