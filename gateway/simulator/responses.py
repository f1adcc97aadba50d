"""OpenAI's responses, as JSON or as events; the terminal one states the whole response again (PROTOCOLS B.5)."""

import json
from typing import Any

from gateway.simulator.content import content_of, is_cut_short, usage_field, usage_of
from gateway.simulator.events import Part, broken_off, comments, encode, event, interleave, trailing
from gateway.simulator.openai_usage import response_usage, told_by
from gateway.simulator.protocols import CREATED, openai_error
from gateway.simulator.response_items import Draft, items_of
from gateway.simulator.scripts import ResponseAsk, Script

UNLESS_ASKED: dict[str, Any] = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "default",
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
    "metadata": {},
}
"""What a response states of its request, and states if the request says nothing of it."""
_AFTER_USAGE = ("user", "metadata")
"""Usage is not the last that stands in a response."""


def response(script: Script, ask: ResponseAsk) -> Part:
    draft = _terminal(script, ask)
    return Part(encode(script, draft.fields["response"]), draft.told, is_terminal=True)


def response_stream(script: Script, ask: ResponseAsk) -> list[Part]:
    begun = {"response": _envelope(ask, "in_progress", {"usage": None})}
    drafts: list[Draft | Part] = [Draft("response.created", begun), Draft("response.in_progress", begun)]
    for index, item in enumerate(items_of(script, ask, _status(script, ask))):
        drafts += item.drafts(index)
    drafts.append(_terminal(script, ask))
    news = Draft("response.simulated_news", {"detail": "a type of event that nobody knows yet"})
    fillers: list[Draft | Part] = [*comments(script), *[news] * script.unknown_events]
    drafts = [*interleave(drafts, fillers), *trailing(script)]
    return _numbered(script, broken_off(script, drafts, _error(script)))


def _numbered(script: Script, drafts: list[Draft | Part]) -> list[Part]:
    """What is no event has no number."""
    parts, number = [], 0
    for draft in drafts:
        if isinstance(draft, Part):
            parts.append(draft)
            continue
        value = {"type": draft.name, "sequence_number": number} | draft.fields
        parts.append(event(script, value, draft.told, name=draft.name, is_terminal=draft.is_terminal))
        number += 1
    return parts


def _status(script: Script, ask: ResponseAsk) -> str:
    if script.response_failed:
        return "failed"
    return "incomplete" if script.content_filter or is_cut_short(script, ask) else "completed"


def _terminal(script: Script, ask: ResponseAsk) -> Draft:
    """`response.completed`, `response.incomplete` or `response.failed`."""
    status = _status(script, ask)
    usage = usage_of(script, ask)
    shown = response_usage(script, usage, content_of(script, ask).thought_tokens)
    fields: dict[str, Any] = {"output": [item.whole for item in items_of(script, ask, status)]}
    match status:
        case "completed":
            fields["completed_at"] = CREATED + 1
        case "incomplete":
            reason = "content_filter" if script.content_filter else "max_output_tokens"
            fields["incomplete_details"] = {"reason": reason}
        case "failed":
            fields["error"] = _failure(script)
    whole = _envelope(ask, status, usage_field(script, shown), **fields)
    return Draft(f"response.{status}", {"response": whole}, told_by(script, usage), is_terminal=True)


def _envelope(ask: ResponseAsk, status: str, usage: dict[str, Any], **fields: object) -> dict[str, Any]:
    """In the real order, in which usage comes late and is not the last."""
    echoed: dict[str, Any] = UNLESS_ASKED | json.loads(ask.echoed)
    after = {name: echoed.pop(name) for name in _AFTER_USAGE}
    head: dict[str, Any] = {"id": "resp_simulated", "object": "response", "created_at": CREATED, "status": status}
    head |= {"completed_at": None, "error": None, "incomplete_details": None, "model": ask.model, "output": []}
    return head | fields | echoed | usage | after


def _failure(script: Script) -> dict[str, Any]:
    return {"code": script.error_code or "server_error", "message": script.error_message}


def _error(script: Script) -> Draft:
    """The event `error`, which is no envelope."""
    error = openai_error(script)
    return Draft("error", _failure(script) | {"param": error["param"]})
