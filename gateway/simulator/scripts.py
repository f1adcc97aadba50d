"""What the simulated provider can be told to do, and what it then says. Its bytes: simulator_answers.py.

A `Script` says how one answer goes; by default it is a truthful provider's:

    Script()                                            12 tokens in 4 deltas, usage as counted
    Script(output_tokens=50, events=50, pause_seconds=0.02)     a trickle
    Script(cut_after_events=3)                          a reset right after the third event
    Script(usage=Usage(input=9, output=5, cache_read=70), over_report=1_000)
    Script(status=529)                                  overloaded_error, in Anthropic's envelope

Text is made of words of four bytes for each token, so an estimate of bytes / 4 is exact.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from gateway.core.usage import NO_USAGE, Usage

BYTES_PER_TOKEN = 4

_WORDS = ("the ", "old ", "cat ", "sat ", "and ", "saw ", "one ", "big ", "red ", "sun ")
_TOOL_INPUT_OVERHEAD = 3
"""Tokens that the JSON around a tool's one argument takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """How one answer goes. Events are counted as they stand on the wire, pings included, from 1."""

    # What is answered.
    status: int = 200
    error_type: str | None = None
    """`None`: the one that belongs to the status."""
    error_message: str = "The simulator was told to fail."
    body: bytes | None = None
    """Exactly these bytes; `usage` then says what they report."""
    content_type: str | None = None
    extra_headers: tuple[tuple[str, str], ...] = ()
    output_tokens: int = 12
    """Never more than the request's `max_tokens`."""
    events: int = 4
    """Deltas into which the text is divided."""
    tool_use: bool = False
    """Answers with a tool call; without it, only a request that forces a tool gets one."""
    thinking: Literal["shown", "hidden"] | None = None
    long_data_line_bytes: int = 0
    """At least so long is the one data line of a search result before the text."""

    # What is reported.
    usage: Usage | None = None
    """`None`: as counted."""
    over_report: int = 0
    """Output tokens reported on top."""
    start_usage: Usage | None = None
    """What `message_start` reports; `None`: the same, with one output token."""
    restate_input: bool = False
    """`message_delta` repeats input and cache counts."""
    iterations: tuple[tuple[str, Usage], ...] = ()
    """Entries (type, usage) of the final `usage.iterations`."""
    message_deltas: int = 1
    omit_start_usage: bool = False
    omit_usage: bool = False
    null_usage: bool = False

    # How it is written.
    first_byte_delay_seconds: float = 0
    pause_seconds: float = 0
    """Between events. Without a pause they leave in one write."""
    stall_after_events: int | None = None
    stall_seconds: float = 3_600
    cut_after_events: int | None = None
    cut_after_bytes: int | None = None
    """Of the body as it is on the wire, after encoding."""
    cut: Literal["reset", "close", "end"] = "reset"
    """`end`: a chunked body ends properly, though its events do not."""
    error_event_after_events: int | None = None
    split_bytes: int = 0
    """Writes the body in pieces of so many bytes."""
    split_seed: int | None = None
    """Makes those pieces 1 to `split_bytes` long, at random."""
    spaced_json: bool = False
    line_end: Literal["\n", "\r\n", "\r"] = "\n"
    pings: int = 1
    unknown_events: int = 0
    trailing_bytes: bytes = b""
    """After `message_stop`."""
    encoding: Literal["gzip", "deflate"] | None = None
    """Compressed, flushed after each event, whatever the request accepts."""
    chunked_json: bool = False
    close_delimited: bool = False
    informational: int = 0
    """So many `103 Early Hints` before the answer."""

    @property
    def is_fixed(self) -> bool:
        """Whether the answer does not depend on the request."""
        return self.body is not None or self.status >= 300

    @property
    def reports_usage(self) -> bool:
        return not (self.omit_usage or self.null_usage)


HTML_502 = Script(
    status=502, body=b"<html><head><title>502 Bad Gateway</title></head></html>\n", content_type="text/html"
)
"""What an edge in front of a provider answers."""


def redirect(location: str) -> Script:
    return Script(status=307, body=b"", extra_headers=(("location", location),))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What an answer depends on of a request for a message."""

    model: str
    input_tokens: int
    max_tokens: int
    streams: bool = False
    tool: str = "simulated_tool"
    must_use_tool: bool = False


@dataclass(frozen=True, slots=True)
class Block:
    """A content block as it stands in a JSON answer (`whole`), and as a stream builds it up."""

    whole: dict[str, Any]
    start: dict[str, Any]
    deltas: tuple[dict[str, Any], ...] = ()


def add_up(usages: Iterable[Usage]) -> Usage:
    """Each of the four counts by itself."""
    total = NO_USAGE
    for usage in usages:
        total = Usage(
            input=total.input + usage.input,
            output=total.output + usage.output,
            cache_write=total.cache_write + usage.cache_write,
            cache_read=total.cache_read + usage.cache_read,
        )
    return total


# What a message says: blocks, usage, stop reason.


def blocks(script: Script, ask: Ask) -> list[Block]:
    tokens = min(script.output_tokens, ask.max_tokens)
    blocks = []
    if script.thinking:
        tokens, thought = tokens - tokens // 2, tokens // 2
        blocks.append(_thinking_block(thought, is_shown=script.thinking == "shown"))
    if script.long_data_line_bytes:
        blocks.append(_search_result_block(script.long_data_line_bytes))
    if _calls_tool(script, ask):
        return [*blocks, _tool_block(ask.tool, tokens, script.events)]
    return [*blocks, _text_block(tokens, script.events)]


def _text_block(tokens: int, events: int) -> Block:
    text = _words(tokens)
    deltas = tuple({"type": "text_delta", "text": part} for part in _divide(text, events))
    return Block({"type": "text", "text": text}, {"type": "text", "text": ""}, deltas)


def _tool_block(name: str, tokens: int, events: int) -> Block:
    argument = {"note": _words(max(0, tokens - _TOOL_INPUT_OVERHEAD))}
    parts = ["", *_divide(json.dumps(argument), events)]
    block = {"type": "tool_use", "id": "toolu_simulated", "name": name}
    deltas = tuple({"type": "input_json_delta", "partial_json": part} for part in parts)
    return Block(block | {"input": argument}, block | {"input": {}}, deltas)


def _thinking_block(tokens: int, *, is_shown: bool) -> Block:
    thought = _words(tokens) if is_shown else ""
    signature = {"signature": "c2ltdWxhdGVk"}
    deltas = [{"type": "signature_delta"} | signature]
    if thought:
        deltas.insert(0, {"type": "thinking_delta", "thinking": thought})
    block = {"type": "thinking", "thinking": ""}
    return Block(block | {"thinking": thought} | signature, block | {"signature": ""}, tuple(deltas))


def _search_result_block(size: int) -> Block:
    result = {"type": "web_search_result", "url": "https://example.com/", "title": "Example", "page_age": None}
    block = {
        "type": "web_search_tool_result",
        "tool_use_id": "srvtoolu_simulated",
        "content": [result | {"encrypted_content": "A" * size}],
    }
    return Block(block, block)


def _words(tokens: int) -> str:
    whole, rest = divmod(tokens, len(_WORDS))
    return "".join(_WORDS) * whole + "".join(_WORDS[:rest])


def _divide(text: str, parts: int) -> list[str]:
    """`text` in at most `parts` parts of about the same length, none of them empty."""
    ends = [len(text) * number // parts for number in range(parts + 1)]
    return [text[start:end] for start, end in pairwise(ends) if end > start]


def _calls_tool(script: Script, ask: Ask) -> bool:
    return script.tool_use or ask.must_use_tool


def stop_reason(script: Script, ask: Ask) -> str:
    if _calls_tool(script, ask):
        return "tool_use"
    return "max_tokens" if script.output_tokens > ask.max_tokens else "end_turn"


def usage_of(script: Script, ask: Ask) -> Usage:
    counted = Usage(input=ask.input_tokens, output=min(script.output_tokens, ask.max_tokens))
    usage = script.usage or counted
    return replace(usage, output=usage.output + script.over_report)


def counts(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input,
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cache_read,
        "output_tokens": usage.output,
    }


def full_usage(usage: Usage) -> dict[str, Any]:
    split = {"ephemeral_5m_input_tokens": usage.cache_write, "ephemeral_1h_input_tokens": 0}
    return counts(usage) | {"cache_creation": split, "service_tier": "standard"}


def iterations(script: Script) -> dict[str, Any]:
    entries = [{"type": kind} | counts(usage) for kind, usage in script.iterations]
    return {"iterations": entries} if entries else {}


def with_iterations(script: Script, usage: Usage) -> Usage:
    """The sum of the iterations, but never less than the top level: the rule by which they are charged."""
    total = add_up(usage for _, usage in script.iterations)
    return Usage(
        input=max(usage.input, total.input),
        output=max(usage.output, total.output),
        cache_write=max(usage.cache_write, total.cache_write),
        cache_read=max(usage.cache_read, total.cache_read),
    )
