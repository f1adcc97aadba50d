"""The output of a response: what each item is when it is whole, and the events that build it up (PROTOCOLS B.5)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gateway.core.usage import Usage
from gateway.simulator.content import Content, content_of, divide
from gateway.simulator.events import padding
from gateway.simulator.scripts import ResponseAsk, Script


@dataclass(frozen=True, slots=True)
class Draft:
    """An event without its sequence number, which it gets from its place on the wire."""

    name: str
    fields: dict[str, Any]
    told: Usage | None = None
    is_terminal: bool = False


@dataclass(frozen=True, slots=True)
class Item:
    """One entry of `output`."""

    whole: dict[str, Any]
    start: dict[str, Any]
    """As it stands in `response.output_item.added`."""
    between: tuple[Draft, ...] = ()
    """The events until it is done, without its place in the output."""

    def drafts(self, output_index: int) -> Iterator[Draft]:
        place = {"output_index": output_index}
        yield Draft("response.output_item.added", place | {"item": self.start})
        item = {"item_id": self.whole["id"]} | place
        yield from (Draft(draft.name, item | draft.fields) for draft in self.between)
        yield Draft("response.output_item.done", place | {"item": self.whole})


def items_of(script: Script, ask: ResponseAsk, status: str) -> list[Item]:
    """`status`: that of the response, which the last item shares."""
    content = content_of(script, ask)
    items = [_reasoning(script, ask, content.thought)] if script.thinking else []
    if script.long_data_line_bytes:
        items.append(_image(script.long_data_line_bytes))
    item_status = "incomplete" if status == "incomplete" else "completed"
    if content.arguments is not None:
        return [*items, _function_call(script, ask, content, item_status)]
    return [*items, _message(script, ask, content.text, item_status)]


def _delta(script: Script, ask: ResponseAsk, name: str, text: str, **fields: object) -> Draft:
    if script.obfuscation and ask.include_obfuscation:
        fields["obfuscation"] = padding(text)
    return Draft(f"{name}.delta", {"delta": text} | fields)


def _message(script: Script, ask: ResponseAsk, text: str, status: str) -> Item:
    part = {"type": "output_text", "annotations": [], "logprobs": []}
    place: dict[str, Any] = {"content_index": 0}
    logged: dict[str, Any] = place | {"logprobs": []}
    name = "response.output_text"
    deltas = [_delta(script, ask, name, each, **logged) for each in divide(text, script.events)]
    between = (
        Draft("response.content_part.added", place | {"part": part | {"text": ""}}),
        *deltas,
        Draft(f"{name}.done", logged | {"text": text}),
        Draft("response.content_part.done", place | {"part": part | {"text": text}}),
    )
    item = {"id": "msg_simulated", "type": "message", "status": "in_progress", "content": [], "role": "assistant"}
    return Item(item | {"status": status, "content": [part | {"text": text}]}, item, between)


def _function_call(script: Script, ask: ResponseAsk, content: Content, status: str) -> Item:
    name = "response.function_call_arguments"
    text = content.arguments_text
    deltas = [_delta(script, ask, name, each) for each in divide(text, script.events)]
    item = {"id": "fc_simulated", "type": "function_call", "status": "in_progress", "arguments": ""}
    item |= {"call_id": "call_simulated", "name": ask.tool}
    return Item(
        item | {"status": status, "arguments": text}, item, (*deltas, Draft(f"{name}.done", {"arguments": text}))
    )


def _reasoning(script: Script, ask: ResponseAsk, thought: str) -> Item:
    """Of a hidden thought there is no summary."""
    item = {"id": "rs_simulated", "type": "reasoning", "encrypted_content": "c2ltdWxhdGVk", "summary": []}
    if not thought:
        return Item(item, item)
    place: dict[str, Any] = {"summary_index": 0}
    part = {"type": "summary_text"}
    name = "response.reasoning_summary"
    deltas = [_delta(script, ask, f"{name}_text", each, **place) for each in divide(thought, script.events)]
    between = (
        Draft(f"{name}_part.added", place | {"part": part | {"text": ""}}),
        *deltas,
        Draft(f"{name}_text.done", place | {"text": thought}),
        Draft(f"{name}_part.done", place | {"part": part | {"text": thought}}),
    )
    return Item(item | {"summary": [part | {"text": thought}]}, item, between)


def _image(size: int) -> Item:
    item: dict[str, Any] = {"id": "ig_simulated", "type": "image_generation_call"}
    states = ("in_progress", "generating", "completed")
    between = tuple(Draft(f"response.image_generation_call.{state}", {}) for state in states)
    whole = item | {"status": "completed", "output_format": "png", "result": "A" * size}
    return Item(whole, item | {"status": "in_progress", "result": None}, between)
