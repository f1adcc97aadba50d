"""A message of Anthropic's: content blocks, as JSON or as events, and what they report (PROTOCOLS A.4, A.5)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from gateway.core.usage import NO_USAGE, Usage
from gateway.simulator.content import (
    Content,
    add_up,
    calls_tool,
    content_of,
    divide,
    is_cut_short,
    usage_field,
    usage_of,
)
from gateway.simulator.events import Part, broken_off, comments, encode, event, interleave, trailing
from gateway.simulator.scripts import Ask, Script


@dataclass(frozen=True, slots=True)
class Block:
    """A content block as it stands in a JSON answer (`whole`), and as a stream builds it up."""

    whole: dict[str, Any]
    start: dict[str, Any]
    deltas: tuple[dict[str, Any], ...] = ()


def message(script: Script, ask: Ask) -> Part:
    usage = usage_of(script, ask)
    content = [block.whole for block in _blocks(script, ask)]
    whole = _envelope(ask, content=content, stop_reason=_stop_reason(script, ask))
    whole |= usage_field(script, _full_usage(usage) | _iterations(script))
    told = _with_iterations(script, usage) if script.reports_usage else None
    return Part(encode(script, whole), told, is_terminal=True)


def message_stream(script: Script, ask: Ask) -> list[Part]:
    start = _message_start(script, ask)
    events = [start]
    for index, block in enumerate(_blocks(script, ask)):
        events += _block_events(script, index, block)
    events += _message_deltas(script, ask, start.told or NO_USAGE)
    events.append(_event(script, "message_stop", is_terminal=True))
    events = interleave(events, _fillers(script)) + trailing(script)
    error = {"type": script.error_type or "overloaded_error", "message": script.error_message}
    return broken_off(script, events, _event(script, "error", error=error))


# The events.


def _event(
    script: Script, name: str, told: Usage | None = None, *, is_terminal: bool = False, **fields: object
) -> Part:
    return event(script, {"type": name} | fields, told, name=name, is_terminal=is_terminal)


def _envelope(ask: Ask, **fields: object) -> dict[str, Any]:
    envelope = {"id": "msg_simulated", "type": "message", "role": "assistant", "model": ask.model}
    return envelope | {"content": [], "stop_reason": None, "stop_sequence": None} | fields


def _message_start(script: Script, ask: Ask) -> Part:
    usage = usage_of(script, ask)
    usage = script.start_usage or replace(usage, output=min(1, usage.output))
    shown = {} if script.omit_start_usage else usage_field(script, _full_usage(usage))
    told = usage if script.reports_usage and shown else None
    return _event(script, "message_start", told, message=_envelope(ask, **shown))


def _block_events(script: Script, index: int, block: Block) -> Iterator[Part]:
    yield _event(script, "content_block_start", index=index, content_block=block.start)
    for delta in block.deltas:
        yield _event(script, "content_block_delta", index=index, delta=delta)
    yield _event(script, "content_block_stop", index=index)


def _message_deltas(script: Script, ask: Ask, told: Usage) -> Iterator[Part]:
    """Cumulative counts; the last has the stop reason and the iterations."""
    usage = usage_of(script, ask)
    for number in range(1, script.message_deltas + 1):
        output = usage.output * number // script.message_deltas
        told = replace(usage if script.restate_input else told, output=output)
        shown = _counts(told) if script.restate_input else {"output_tokens": output}
        is_last = number == script.message_deltas
        if is_last:
            shown |= _iterations(script)
            told = _with_iterations(script, told)
        delta = {"stop_reason": _stop_reason(script, ask) if is_last else None, "stop_sequence": None}
        fields = usage_field(script, shown)
        yield _event(script, "message_delta", told if script.reports_usage else None, delta=delta, **fields)


def _fillers(script: Script) -> list[Part]:
    unknown = _event(script, "simulated_news", detail="a type of event that nobody knows yet")
    pings = [_event(script, "ping")] * script.pings
    return pings + comments(script) + [unknown] * script.unknown_events


# What it says.


def _blocks(script: Script, ask: Ask) -> list[Block]:
    content = content_of(script, ask)
    blocks = [_thinking_block(content.thought)] if script.thinking else []
    if script.long_data_line_bytes:
        blocks.append(_search_result_block(script.long_data_line_bytes))
    if content.arguments is not None:
        return [*blocks, _tool_block(ask.tool, content, script.events)]
    return [*blocks, _text_block(content.text, script.events)]


def _text_block(text: str, events: int) -> Block:
    deltas = tuple({"type": "text_delta", "text": part} for part in divide(text, events))
    return Block({"type": "text", "text": text}, {"type": "text", "text": ""}, deltas)


def _tool_block(name: str, content: Content, events: int) -> Block:
    parts = ["", *divide(content.arguments_text, events)]
    block = {"type": "tool_use", "id": "toolu_simulated", "name": name}
    deltas = tuple({"type": "input_json_delta", "partial_json": part} for part in parts)
    return Block(block | {"input": content.arguments}, block | {"input": {}}, deltas)


def _thinking_block(thought: str) -> Block:
    """Of a hidden thought only the signature is seen."""
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


def _stop_reason(script: Script, ask: Ask) -> str:
    if script.content_filter:
        return "refusal"
    if calls_tool(script, ask):
        return "tool_use"
    return "max_tokens" if is_cut_short(script, ask) else "end_turn"


# What it reports.


def _counts(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input,
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cache_read,
        "output_tokens": usage.output,
    }


def _full_usage(usage: Usage) -> dict[str, Any]:
    split = {"ephemeral_5m_input_tokens": usage.cache_write, "ephemeral_1h_input_tokens": 0}
    return _counts(usage) | {"cache_creation": split, "service_tier": "standard"}


def _iterations(script: Script) -> dict[str, Any]:
    entries = [{"type": kind} | _counts(usage) for kind, usage in script.iterations]
    return {"iterations": entries} if entries else {}


def _with_iterations(script: Script, usage: Usage) -> Usage:
    """The sum of the iterations, but never less than the top level: the rule by which they are charged."""
    total = add_up(usage for _, usage in script.iterations)
    return Usage(
        input=max(usage.input, total.input),
        output=max(usage.output, total.output),
        cache_write=max(usage.cache_write, total.cache_write),
        cache_read=max(usage.cache_read, total.cache_read),
    )
