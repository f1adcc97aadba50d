"""JSON and server-sent events as parts of a body, before anything is cut, divided or compressed."""

import json
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from gateway.core.usage import Usage
from gateway.simulator.scripts import Script

T = TypeVar("T")
_OBFUSCATION_BYTES = 16
"""Deltas are padded to a multiple of it."""


@dataclass(frozen=True, slots=True)
class Part:
    """One event, or a whole body."""

    data: bytes
    told: Usage | None = None
    """All that is reported so far, if it changes here."""
    is_terminal: bool = False


def encode(script: Script, value: object) -> bytes:
    separators = (", ", ": ") if script.spaced_json else (",", ":")
    return json.dumps(value, separators=separators).encode()


def event(
    script: Script, value: object, told: Usage | None = None, *, name: str | None = None, is_terminal: bool = False
) -> Part:
    """Without a name it is data only, as chats have it."""
    return data_event(script, encode(script, value).decode(), told, name=name, is_terminal=is_terminal)


def data_event(
    script: Script, data: str, told: Usage | None = None, *, name: str | None = None, is_terminal: bool = False
) -> Part:
    """For data that is no JSON."""
    first = "" if name is None else f"event: {name}\n"
    text = f"{first}data: {data}\n\n".replace("\n", script.line_end)
    return Part(text.encode(), told, is_terminal)


def comments(script: Script) -> list[Part]:
    return [Part(f": keep-alive{script.line_end * 2}".encode())] * script.comments


def interleave(events: list[T], fillers: Iterable[T]) -> list[T]:
    """One filler after each event, from the first on; those left over stand before the last event."""
    waiting, mixed = deque(fillers), []
    for each in events[:-1]:
        mixed.append(each)
        if waiting:
            mixed.append(waiting.popleft())
    return [*mixed, *waiting, events[-1]]


def broken_off(script: Script, events: list[T], error: T) -> list[T]:
    """The events, or those until the scripted error and the error."""
    if script.error_event_after_events is None:
        return events
    return [*events[: script.error_event_after_events], error]


def padding(text: str) -> str:
    """So long that `text` and it are a multiple of `_OBFUSCATION_BYTES`, and never empty."""
    return "x" * (_OBFUSCATION_BYTES - len(text) % _OBFUSCATION_BYTES)


def trailing(script: Script) -> list[Part]:
    """What follows the terminal event."""
    return [Part(script.trailing_bytes)] if script.trailing_bytes else []
