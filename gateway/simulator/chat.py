"""Chat completions, as JSON or as chunks, with the quirks of vendors that are compatible (PROTOCOLS B.4)."""

from collections.abc import Iterable, Iterator
from typing import Any

from msgspec.structs import replace

from gateway.core.usage import Usage
from gateway.simulator.content import (
    Content,
    calls_tool,
    content_of,
    divide,
    is_cut_short,
    usage_field,
    usage_of,
)
from gateway.simulator.events import (
    Part,
    broken_off,
    comments,
    data_event,
    encode,
    event,
    interleave,
    padding,
    trailing,
)
from gateway.simulator.openai_usage import chat_usage, told_by
from gateway.simulator.protocols import CREATED, openai_error
from gateway.simulator.scripts import ChatAsk, Script

_CALL_ID = "call_simulated"
_AUDIO_ID = "audio_simulated"


def chat_completion(script: Script, ask: ChatAsk) -> Part:
    content = content_of(script, ask)
    usage = usage_of(script, ask, ask.choices)
    message = _message(script, ask, content)
    reason = _finish_reason(script, ask)
    choices = [
        {"index": index, "message": message, "logprobs": None, "finish_reason": reason}
        for index in range(ask.choices)
    ]
    shown = usage_field(script, chat_usage(script, usage, content.thought_tokens * ask.choices))
    tier = {"service_tier": "default", "system_fingerprint": "fp_simulated"}
    whole = _envelope(ask, "chat.completion") | {"choices": choices} | shown | tier
    return Part(encode(script, whole), told_by(script, usage), is_terminal=True)


def chat_stream(script: Script, ask: ChatAsk) -> list[Part]:
    events = [*_Chunks(script, ask).all(), data_event(script, "[DONE]", is_terminal=True)]
    return broken_off(
        script,
        interleave(events, _fillers(script, ask)) + trailing(script),
        event(script, {"error": openai_error(script)}),
    )


def _envelope(ask: ChatAsk, kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-simulated", "object": kind, "created": CREATED, "model": ask.model}


def _finish_reason(script: Script, ask: ChatAsk) -> str:
    if script.content_filter:
        return "content_filter"
    if calls_tool(script, ask):
        return "tool_calls"
    return "length" if is_cut_short(script, ask) else "stop"


def _message(script: Script, ask: ChatAsk, content: Content) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": content.text}
    if content.arguments is not None:
        message["content"] = None
        message["tool_calls"] = [_tool_call(ask, content.arguments_text)]
    if content.thought:
        message["reasoning_content"] = content.thought
    message |= {"refusal": None, "annotations": []}
    if script.long_data_line_bytes:
        sound = {"data": "A" * script.long_data_line_bytes, "expires_at": CREATED + 3_600, "transcript": ""}
        message["audio"] = {"id": _AUDIO_ID} | sound
    return message


def _tool_call(ask: ChatAsk, arguments: str) -> dict[str, Any]:
    return {"id": _CALL_ID, "type": "function", "function": {"name": ask.tool, "arguments": arguments}}


def _deltas(script: Script, ask: ChatAsk) -> Iterator[dict[str, Any]]:
    """Of one choice, without the empty one beside the finish reason."""
    content = content_of(script, ask)
    calls = content.arguments is not None
    yield {"role": "assistant", "content": None if calls else "", "refusal": None}
    for part in divide(content.thought, script.events):
        yield {"reasoning_content": part}
    if script.long_data_line_bytes:
        yield {"audio": {"id": _AUDIO_ID, "data": "A" * script.long_data_line_bytes}}
    if not calls:
        yield from ({"content": part} for part in divide(content.text, script.events))
        return
    yield {"tool_calls": [{"index": 0} | _tool_call(ask, "")]}
    for part in divide(content.arguments_text, script.events):
        yield {"tool_calls": [{"index": 0, "function": {"arguments": part}}]}


def _fillers(script: Script, ask: ChatAsk) -> list[Part]:
    safe = {"hate": {"filtered": False, "severity": "safe"}}
    results = [{"prompt_index": 0, "content_filter_results": safe}]
    without_choices = _envelope(ask, "chat.completion.chunk") | {"choices": [], "prompt_filter_results": results}
    return comments(script) + [event(script, without_choices)] * script.unknown_events


class _Chunks:
    """The chunks of one stream, each with the usage that its script puts there."""

    def __init__(self, script: Script, ask: ChatAsk) -> None:
        self._script = script
        self._ask = ask
        self._usage = usage_of(script, ask, ask.choices)
        self._reasoning = content_of(script, ask).thought_tokens * ask.choices
        self._deltas = list(_deltas(script, ask))
        self._base = _envelope(ask, "chat.completion.chunk") | {
            "service_tier": "default",
            "system_fingerprint": "fp_simulated",
        }

    def all(self) -> Iterator[Part]:
        """The choices by turns, then their ends, then what comes for the usage alone."""
        total = len(self._deltas) * self._ask.choices
        turns = ((delta, index) for delta in self._deltas for index in range(self._ask.choices))
        for number, (delta, index) in enumerate(turns, 1):
            yield self._chunk(delta, index, output=self._usage.output * number // total)
        reason = _finish_reason(self._script, self._ask)
        for index in range(self._ask.choices):
            is_last = index == self._ask.choices - 1
            yield self._chunk({}, index, output=self._usage.output, reason=reason, is_last=is_last)
        yield from self._own_chunk()

    def _chunk(
        self, delta: dict[str, Any], index: int, *, output: int, reason: str | None = None, is_last: bool = False
    ) -> Part:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        chunk: dict[str, Any] = self._base | {"choices": [choice]} | self._obfuscation(delta)
        match self._script.chat_usage:
            case "own_chunk" if self._ask.include_usage and not self._script.omit_usage:
                return event(self._script, chunk | {"usage": None})
            case "every_chunk":
                return self._reporting(chunk, replace(self._usage, output=output))
            case "last_chunk" if is_last:
                return self._reporting(chunk, self._usage)
            case "last_choice" if is_last:
                chunk["choices"] = [choice | self._shown(self._usage)]
                return event(self._script, chunk, told_by(self._script, self._usage))
            case "x_groq" if is_last:
                chunk["x_groq"] = {"id": "req_simulated"} | self._shown(self._usage)
                return event(self._script, chunk, told_by(self._script, self._usage))
        return event(self._script, chunk)

    def _own_chunk(self) -> Iterable[Part]:
        place = self._script.chat_usage
        if place == "late_choice":
            choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
            return [self._reporting(self._base | {"choices": [choice]}, self._usage)]
        if place == "own_chunk" and self._ask.include_usage and not self._script.omit_usage:
            return [self._reporting(self._base | {"choices": []}, self._usage)]
        return []

    def _reporting(self, chunk: dict[str, Any], usage: Usage) -> Part:
        return event(self._script, chunk | self._shown(usage), told_by(self._script, usage))

    def _shown(self, usage: Usage) -> dict[str, Any]:
        return usage_field(self._script, chat_usage(self._script, usage, self._reasoning))

    def _obfuscation(self, delta: dict[str, Any]) -> dict[str, Any]:
        if not (delta and self._script.obfuscation and self._ask.include_obfuscation):
            return {}
        return {"obfuscation": padding(str(delta))}
