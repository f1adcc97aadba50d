"""The bodies of the metered endpoints: what limits depend on in them, and what nobody may write there."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.core.estimate import Estimator
from gateway.core.openai_parsing import parse_chat, parse_embeddings, parse_responses
from gateway.core.parsing import ParsedRequest, parse_messages
from gateway.core.settings import Settings
from tests.harness import MODEL, ask

SETTINGS = Settings()
ESTIMATOR = Estimator(SETTINGS, SETTINGS.default_output_tokens)
KELVIN, LONG_S = "\u212a", "\u017f"
"""Letters that are k and s to whoever takes no notice of case."""

Read = Mapping[str, Any]
"""What a parser makes of a body's top level."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """The bodies of one endpoint."""

    path: str
    parse: Callable[[bytes, Estimator], ParsedRequest]
    good: bytes
    values: Mapping[str, Sequence[str]]
    """Fields that limits depend on, each with values that it may have."""
    others: Mapping[str, Sequence[str]]
    """And fields that they do not depend on."""
    output: Callable[[Read], int]
    """What is held for the output, written down a second time."""
    tricks: Sequence[str] = ()
    """More fields that a good body must not have."""

    @property
    def maximum(self) -> str:
        """The field whose number is tried out; embeddings have none."""
        return next((name for name in self.values if name.startswith("max_")), "")

    def with_field(self, spelled: str) -> bytes:
        """A good body with one field more, spelled out."""
        return b"{" + spelled.encode("utf-8", "surrogatepass") + b"," + self.good[1:]

    def with_maximum(self, spelled: str) -> bytes:
        return self.good.replace(f'"{self.maximum}": 100'.encode(), f'"{self.maximum}": {spelled}'.encode())


def good(**fields: Any) -> bytes:
    return json.dumps({"model": MODEL} | fields).encode()


def greatest(read: Read, *names: str) -> int:
    return max((read[name] for name in names if read.get(name) is not None), default=SETTINGS.default_output_tokens)


MODELS = ('"claude-x"', '"claude-\\u0078"', '"x"')
FLAGS = ("true", "false", "null")
COUNTS = ("1", "64", "64000")
METADATA = ("{}", '{"model": "b", "Model": "c"}', '{"max_tokens": 1}')
TEXTS = (
    '"x"',
    '"\\",\\"model\\":\\"b\\""',
    '"\\\\"',
    '[{"role": "user", "content": "model"}]',
    '[{"model": "b", "n": 1}]',
)
OPTIONS = ("null", "{}", '{"include_usage": true}', '{"include_usage": false}', '{"include_obfuscation": false}')
FORMS = {
    "messages": Form(
        path="/v1/messages",
        parse=parse_messages,
        good=json.dumps(ask()).encode(),
        values={"model": MODELS, "max_tokens": COUNTS, "stream": FLAGS},
        others={"messages": TEXTS, "system": TEXTS, "metadata": METADATA},
        output=lambda read: int(read["max_tokens"]),
    ),
    "chat": Form(
        path="/v1/chat/completions",
        parse=parse_chat,
        good=good(max_completion_tokens=100, messages=[{"role": "user", "content": "Hey"}]),
        values={
            "model": MODELS,
            "max_completion_tokens": (*COUNTS, "null"),
            "max_tokens": (*COUNTS, "null"),
            "n": ("1", "2", "128", "null"),
            "stream": FLAGS,
            "stream_options": OPTIONS,
        },
        others={"messages": TEXTS, "user": TEXTS, "metadata": METADATA},
        output=lambda read: greatest(read, "max_completion_tokens", "max_tokens") * (read.get("n") or 1),
        tricks=(
            *(
                f'"n": {number}'
                for number in ("0", "-1", "129", "1.5", "1e1", "true", '"2"', "[1]", "NaN", str(2**64))
            ),
            *(f'"max_tokens": {number}' for number in ("0", "-1", "1.5", "true", '"5"', str(2**31), "{}")),
            *(
                f'"stream": true, "stream_options": {options}'
                for options in (
                    *("5", "[]", '"x"', "true", "{", '{"include_usage": 1}', '{"include_usage": "true"}'),
                    *('{"include_usage": true, "include_usage": false}', '{"Include_Usage": true}'),
                    '{"include_usage": true, "\\u0069nclude_usage": false}',
                    f'{{"include_u{LONG_S}age": true}}',
                )
            ),
        ),
    ),
    "responses": Form(
        path="/v1/responses",
        parse=parse_responses,
        good=good(max_output_tokens=100, input="Hey"),
        values={
            "model": MODELS,
            "max_output_tokens": (*COUNTS, "null"),
            "stream": FLAGS,
            "background": ("false", "null"),
            "previous_response_id": ("null", '"resp_1"'),
        },
        others={"input": TEXTS, "instructions": TEXTS, "metadata": METADATA, "max_tokens": COUNTS},
        output=lambda read: greatest(read, "max_output_tokens"),
        tricks=('"background": true', '"background": 1', '"background": "false"', '"Background": true'),
    ),
    "embeddings": Form(
        path="/v1/embeddings",
        parse=parse_embeddings,
        good=good(input=["one", "two"]),
        values={"model": MODELS, "input": ('"x"', '["a", "b"]', "[1, 2]", "[[1], [2, 3]]")},
        others={"user": TEXTS, "dimensions": COUNTS, "encoding_format": ('"float"', '"base64"')},
        output=lambda _read: 0,
    ),
}


def spellings(name: str) -> list[str]:
    """A name again, and what somebody may take for it."""
    escaped = f"\\u{ord(name[0]):04x}{name[1:]}"
    capital = f"\\u{ord(name[0].upper()):04X}{name[1:]}"
    other_letters = [name.replace(plain, odd) for plain, odd in (("k", KELVIN), ("s", LONG_S)) if plain in name]
    return [name, escaped, capital, name.title(), name.upper(), name.swapcase(), *other_letters]


def doubles(form: Form) -> list[str]:
    """Two fields for one, and names that are nearly one that is read."""
    found = []
    for name, (value, *_) in form.values.items():
        is_there = f'"{name}"'.encode() in form.good
        nearly = [other for other in spellings(name) if other != name and other.casefold() == name]
        found += [f'"{other}": {value}' for other in (spellings(name) if is_there else nearly)]
        found += [f'"{name}": {value}, "{other}": {value}' for other in spellings(name) if not is_there]
    return found
