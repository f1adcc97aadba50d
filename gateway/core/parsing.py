"""What the limits need to know of a request body; the body itself travels on as the bytes it came in.

Its top level is decoded once, each value kept raw. A body that is not exactly one JSON object in UTF-8, or that
names a field twice, is refused.
"""

from dataclasses import dataclass
from typing import TypeVar

import msgspec

from gateway.core.errors import BadRequest
from gateway.core.estimate import Estimator
from gateway.core.limits import Hold
from gateway.core.objects import Fields, NameTwice, TooManyNames, read_object

MAX_MODEL_LENGTH = 256
MAX_OUTPUT_TOKENS = 2**31 - 1

_READ = frozenset({"model", "max_tokens", "stream"})
"""The fields that are read here; the rest is looked at only to see what a request may cost."""

_TEXT = msgspec.json.Decoder(str)
_INTEGER = msgspec.json.Decoder(int)
_BOOLEAN = msgspec.json.Decoder(bool | None)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedRequest:
    """What is known of a request before it is sent on."""

    model: str
    hold: Hold


def parse_messages(body: bytes, estimator: Estimator) -> ParsedRequest:
    """A body of `POST /v1/messages`. Raises `BadRequest`."""
    fields = _decode(body)
    _read(fields, "stream", _BOOLEAN, "true or false")
    max_tokens = _read(fields, "max_tokens", _INTEGER, "a whole number")
    if max_tokens is None:
        raise BadRequest("max_tokens: Field required")
    if not 1 <= max_tokens <= MAX_OUTPUT_TOKENS:
        raise BadRequest(f"max_tokens: Input should be between 1 and {MAX_OUTPUT_TOKENS:,}")
    hold = Hold(input=estimator.input_tokens(body, fields), output=max_tokens)
    return ParsedRequest(model=_read_model(fields), hold=hold)


def parse_count_tokens(body: bytes) -> ParsedRequest:
    """A body of `POST /v1/messages/count_tokens`, which costs nothing. Raises `BadRequest`."""
    return ParsedRequest(model=_read_model(_decode(body)), hold=Hold(input=0, output=0))


def _read_model(fields: Fields) -> str:
    model = _read(fields, "model", _TEXT, "a string")
    if model is None:
        raise BadRequest("model: Field required")
    if not 1 <= len(model) <= MAX_MODEL_LENGTH:
        raise BadRequest(f"model: Input should have 1 to {MAX_MODEL_LENGTH} characters")
    return model


def _read(fields: Fields, name: str, decoder: msgspec.json.Decoder[T], wanted: str) -> T | None:
    raw = fields.get(name)
    if raw is None:
        return None
    try:
        return decoder.decode(raw)
    except msgspec.MsgspecError:
        raise BadRequest(f"{name}: Input should be {wanted}") from None


def _decode(body: bytes) -> Fields:
    """The top level of a body. Every error is dropped with its cause: both hold pieces of the body."""
    try:
        body.decode()  # the parser checks strings only where it builds them
        fields = read_object(body)
    except NameTwice:
        raise BadRequest("The request body names a field twice.") from None
    except TooManyNames:
        raise BadRequest("The request body names far too many fields.") from None
    except msgspec.ValidationError:
        raise BadRequest("The request body is not a JSON object.") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadRequest("The request body is not valid JSON in UTF-8.") from None
    except RecursionError:
        raise BadRequest("The request body is nested too deeply.") from None
    _check_spelling(fields)
    return fields


def _check_spelling(fields: Fields) -> None:
    """Some parsers take `Model` for `model`: what is read here must be what they would read."""
    for name in fields:
        if name not in _READ and name.casefold() in _READ:
            raise BadRequest(f"{name.casefold()}: Field names are written in lower case.")
