"""`GET /v1/models` and `/v1/models/{id}` as the gateway's own answer: merged, filtered by the key, paged.

    read_list   an upstream's list -> its models
    merge       the models of all upstreams -> those that a request can be sent for, each once
    allowed     ... -> those that a key may use
    list_answer, model_answer       ... -> what the client gets

A model appears in the list of the protocol in which it can be used, so that whatever is listed works; only where no
upstream speaks a client's protocol, it sees the others' models. Entries stay as their upstream wrote them, if they
have the form of the client's protocol; else they are written anew with the little that both forms share (PROTOCOLS
A.2, B.2).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import translate
from typing import TypeVar
from urllib.parse import parse_qsl

import msgspec

from gateway.core import amounts
from gateway.core.errors import BadRequest
from gateway.core.objects import Fields, Unclear, read_object
from gateway.core.protocols import Protocol
from gateway.core.routing import Router

MOST_MODELS = 10_000
"""Of all upstreams together; hundreds are usual."""
MAX_ENTRY_BYTES = 16 * 1024
"""A longer entry is written anew; a few kilobytes of description are usual."""
MAX_LIST_BYTES = 4 * 2**20
"""Of all entries that stay as they are; those after it are written anew."""
DEFAULT_LIMIT = 20
MAX_LIMIT = 1_000

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}", re.ASCII)
"""What models are called; an entry with another id is not listed."""

_TEXT = msgspec.json.Decoder(str)
_INTEGER = msgspec.json.Decoder(int)
_MOMENT = msgspec.json.Decoder(datetime)
_ENTRIES = msgspec.json.Decoder(list[msgspec.Raw])
_MARKS = {Protocol.ANTHROPIC: ("type", b'"model"'), Protocol.OPENAI: ("object", b'"model"')}
"""The field that every entry of a protocol's own list has."""
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, Unclear)
_LATEST = 253_402_300_799
"""The last second of the year 9999."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedModel:
    """An entry of an upstream's list."""

    id: str
    raw: bytes
    """The entry as it came; b'' if it is too long to stay so."""
    form: Protocol | None
    """Whose form it has."""
    display_name: str
    created: int
    """Seconds since 1970; 0: not known."""
    protocol: Protocol
    """In which it can be used."""


def read_list(body: bytes, protocol: Protocol) -> tuple[ListedModel, ...]:
    """The entries of an upstream's list in its order; those that make no sense are left out.

    `{"data": [...]}`, as both protocols have it, or the bare list of some vendors. Raises `ValueError`, without a
    piece of it, for anything else.
    """
    try:
        body.decode()  # the parser checks strings only where it builds them
        entries = _entries(body)
    except _UNREADABLE:
        raise ValueError("a list of models that cannot be read") from None
    found = (_read_entry(entry, protocol) for entry in entries[:MOST_MODELS])
    return tuple(model for model in found if model is not None)


def merge(lists: Sequence[Sequence[ListedModel]], router: Router, protocol: Protocol) -> tuple[ListedModel, ...]:
    """What a client of a protocol can choose from: each id once, as the first upstream that serves it lists it.

    `lists` belong to `router.upstreams`, one each; an empty one is an upstream whose list is not known. Order: that
    of the upstreams, and within each its own.
    """
    wanted = {protocol} if router.speaks(protocol) else set(Protocol)
    merged: dict[str, ListedModel] = {}
    kept_bytes = 0
    for place, models in enumerate(lists):
        if router.upstreams[place].protocol not in wanted:
            continue
        for model in models:
            if model.id in merged or len(merged) >= MOST_MODELS or not router.serves(place, model.id):
                continue
            kept_bytes += len(model.raw)
            merged[model.id] = model if kept_bytes <= MAX_LIST_BYTES else _without_raw(model)
    return tuple(merged.values())


def may_relay(router: Router, form: Protocol, globs: Sequence[str]) -> bool:
    """Whether an upstream's own answer says the same: it is alone in its protocol, and nothing is to be left out.

    `globs`: of the key; empty: it may use all."""
    speaking = [upstream for upstream in router.upstreams if upstream.protocol is form]
    return len(speaking) == 1 and not speaking[0].models and not globs


def allowed(models: Iterable[ListedModel], globs: Sequence[str]) -> tuple[ListedModel, ...]:
    """Those that a key may use; without globs all."""
    if not globs:
        return tuple(models)
    pattern = re.compile("|".join(map(translate, globs)))
    return tuple(model for model in models if pattern.match(model.id))


def list_answer(models: Sequence[ListedModel], form: Protocol, raw_query: str) -> bytes:
    """The body of `GET /v1/models`. Raises `BadRequest` for a page that there cannot be.

    OpenAI's list has no pages; Anthropic's has `limit`, `after_id` and `before_id`.
    """
    if form is Protocol.OPENAI:
        return msgspec.json.encode({"object": "list", "data": [_entry(model, form) for model in models]})
    query = dict(parse_qsl(raw_query))
    start, end = _page(models, query)
    shown = models[start:end]
    return msgspec.json.encode(
        {
            "data": [_entry(model, form) for model in shown],
            "has_more": start > 0 if "before_id" in query else end < len(models),
            "first_id": shown[0].id if shown else None,
            "last_id": shown[-1].id if shown else None,
        }
    )


def model_answer(models: Iterable[ListedModel], form: Protocol, model_id: str) -> bytes | None:
    """The body of `GET /v1/models/{id}`; `None`: there is no such model for this key."""
    for model in models:
        if model.id == model_id:
            return bytes(_entry(model, form))
    return None


def _page(models: Sequence[ListedModel], query: Mapping[str, str]) -> tuple[int, int]:
    """Where a page begins and ends."""
    if "after_id" in query and "before_id" in query:
        raise BadRequest("after_id: only one of after_id and before_id can be given")
    limit = _limit(query.get("limit"))
    if "before_id" in query:
        end = _place(models, "before_id", query)
        return max(0, end - limit), end
    start = _place(models, "after_id", query) + 1 if "after_id" in query else 0
    return start, min(len(models), start + limit)


def _limit(text: str | None) -> int:
    if text is None:
        return DEFAULT_LIMIT
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= MAX_LIMIT:
        raise BadRequest(f"limit: Input should be between 1 and {MAX_LIMIT:,}")
    return int(text)


def _place(models: Sequence[ListedModel], name: str, query: Mapping[str, str]) -> int:
    for place, model in enumerate(models):
        if model.id == query[name]:
            return place
    raise BadRequest(f"{name}: there is no such model in the list")


def _entries(body: bytes) -> list[msgspec.Raw]:
    if body.lstrip()[:1] == b"[":
        return _ENTRIES.decode(body)
    return _ENTRIES.decode(read_object(body).get("data", b""))


def _read_entry(entry: msgspec.Raw, protocol: Protocol) -> ListedModel | None:
    try:
        fields = read_object(entry)
        model_id = _TEXT.decode(fields.get("id", b""))
    except _UNREADABLE:
        return None
    if not MODEL_NAME.fullmatch(model_id):
        return None
    return ListedModel(
        id=model_id,
        raw=bytes(entry) if len(bytes(entry)) <= MAX_ENTRY_BYTES else b"",
        form=next((form for form, (name, value) in _MARKS.items() if bytes(fields.get(name, b"")) == value), None),
        display_name=_display_name(fields) or model_id,
        created=_created(fields),
        protocol=protocol,
    )


def _display_name(fields: Fields) -> str:
    """A short name in plain characters, or ''."""
    for field in ("display_name", "name"):
        name = _decoded(fields, field, _TEXT)
        if name is not None and 0 < len(name) <= 128 and name.isprintable():
            return name
    return ""


def _created(fields: Fields) -> int:
    """Of either form: `created` in seconds, `created_at` in RFC 3339."""
    seconds = _decoded(fields, "created", _INTEGER)
    if seconds is None and (stamp := _decoded(fields, "created_at", _MOMENT)) is not None:
        seconds = amounts.to_ms(stamp.astimezone(UTC)) // amounts.SECOND_MS if stamp.tzinfo else None
    return seconds if seconds is not None and 0 <= seconds <= _LATEST else 0


def _decoded(fields: Fields, name: str, decoder: msgspec.json.Decoder[T]) -> T | None:
    try:
        return decoder.decode(fields.get(name, b""))
    except _UNREADABLE:
        return None


def _entry(model: ListedModel, form: Protocol) -> msgspec.Raw:
    """As it came, if it has the form; else what both forms share."""
    if model.raw and model.form is form:
        return msgspec.Raw(model.raw)
    if form is Protocol.OPENAI:
        owner = model.protocol.value
        fields = {"id": model.id, "object": "model", "created": model.created, "owned_by": owner}
    else:
        created_at = amounts.show_stamp(model.created * amounts.SECOND_MS)
        fields = {"type": "model", "id": model.id, "display_name": model.display_name, "created_at": created_at}
    return msgspec.Raw(msgspec.json.encode(fields))


def _without_raw(model: ListedModel) -> ListedModel:
    return replace(model, raw=b"")
