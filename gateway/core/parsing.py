"""What the limits need to know of a request body; the body itself travels on as the bytes it came in.

Its top level is decoded once, each value kept raw. A body that is not exactly one JSON object in UTF-8, or that
names a field twice, is refused. Here: how a body is read, and Anthropic's bodies; openai_parsing.py has OpenAI's.
"""

from typing import TypeVar

import msgspec

from gateway.core.errors import BadRequest
from gateway.core.estimate import Estimator
from gateway.core.limits import Hold
from gateway.core.objects import Fields, NameTwice, TooManyNames, read_object
from gateway.core.splice import Splice

MAX_MODEL_LENGTH = 256
MAX_OUTPUT_TOKENS = 2**31 - 1

_MESSAGES_READ = frozenset({"model", "max_tokens", "stream"})
"""The fields that are read here; the rest is looked at only to see what a request may cost."""

_TEXT = msgspec.json.Decoder(str)
_INTEGER = msgspec.json.Decoder(int)
_COUNT = msgspec.json.Decoder(int | None)
_BOOLEAN = msgspec.json.Decoder(bool | None)

T = TypeVar("T")


class ParsedRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is known of a request before it is sent on."""

    model: str
    hold: Hold
    stream: bool = False
    """The client wants its answer as events."""
    usage_splice: Splice | None = None
    """What makes a streamed chat completion say its usage; `None` where it does, or where that is no question."""


def parse_messages(body: bytes, estimator: Estimator) -> ParsedRequest:
    """A body of `POST /v1/messages`. Raises `BadRequest`."""
    fields = read_body(body, _MESSAGES_READ)
    stream = read_flag(fields, "stream")
    max_tokens = _read(fields, "max_tokens", _INTEGER, "a whole number")
    if max_tokens is None:
        raise BadRequest("max_tokens: Field required")
    _check_between(max_tokens, "max_tokens", MAX_OUTPUT_TOKENS)
    bound = estimator.of_messages(body, fields)
    hold = Hold(input=bound.tokens, hosted_tools=bound.hosted_tools, output=max_tokens)
    return ParsedRequest(model=read_model(fields), hold=hold, stream=stream)


def parse_count_tokens(body: bytes) -> ParsedRequest:
    """A body of `POST /v1/messages/count_tokens`, which costs nothing. Raises `BadRequest`."""
    return ParsedRequest(model=read_model(read_body(body, _MESSAGES_READ)), hold=Hold(input=0, output=0))


def read_model(fields: Fields) -> str:
    """The model's name. Raises `BadRequest`."""
    model = _read(fields, "model", _TEXT, "a string")
    if model is None:
        raise BadRequest("model: Field required")
    if not 1 <= len(model) <= MAX_MODEL_LENGTH:
        raise BadRequest(f"model: Input should have 1 to {MAX_MODEL_LENGTH} characters")
    return model


def read_flag(fields: Fields, name: str) -> bool:
    """Whether a field is true; null and nothing at all mean false. Raises `BadRequest`."""
    return bool(_read(fields, name, _BOOLEAN, "true or false"))


def read_count(fields: Fields, name: str, most: int) -> int | None:
    """A whole number from 1 to `most`; `None` if the field is null or does not stand there. Raises `BadRequest`."""
    count = _read(fields, name, _COUNT, "a whole number")
    if count is not None:
        _check_between(count, name, most)
    return count


def is_given(fields: Fields, name: str) -> bool:
    """A field stands there, with another value than null."""
    return name in fields and bytes(fields[name]) != b"null"


def _check_between(count: int, name: str, most: int) -> None:
    if not 1 <= count <= most:
        raise BadRequest(f"{name}: Input should be between 1 and {most:,}")


def _read(fields: Fields, name: str, decoder: msgspec.json.Decoder[T], wanted: str) -> T | None:
    raw = fields.get(name)
    if raw is None:
        return None
    try:
        return decoder.decode(raw)
    except msgspec.MsgspecError:
        raise BadRequest(f"{name}: Input should be {wanted}") from None


def read_body(body: bytes, read: frozenset[str]) -> Fields:
    """The top level of a body of which the fields `read` will be read. Raises `BadRequest`."""
    if not body.isascii():
        try:
            body.decode()  # the parser checks strings only where it builds them
        except UnicodeDecodeError:
            raise BadRequest("The request body is not valid JSON in UTF-8.") from None
    return read_fields(body, read, "The request body")


def read_fields(data: bytes | msgspec.Raw, read: frozenset[str], what: str) -> Fields:
    """One level of a body, which a refusal calls `what`. Every error is dropped with its cause: both hold pieces of
    the body. Raises `BadRequest`."""
    try:
        fields = read_object(data)
    except NameTwice:
        raise BadRequest(f"{what} names a field twice.") from None
    except TooManyNames:
        raise BadRequest(f"{what} names far too many fields.") from None
    except msgspec.ValidationError:
        raise BadRequest(f"{what} is not a JSON object.") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadRequest(f"{what} is not valid JSON in UTF-8.") from None
    except RecursionError:
        raise BadRequest(f"{what} is nested too deeply.") from None
    _check_spelling(fields, read)
    return fields


def _check_spelling(fields: Fields, read: frozenset[str]) -> None:
    """Some parsers take `Model` for `model`: what is read here must be what they would read."""
    for name in fields:
        if name not in read and name.casefold() in read:
            raise BadRequest(f"{name.casefold()}: Field names are written in lower case.")
