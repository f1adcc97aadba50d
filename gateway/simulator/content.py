"""What an answer says and what it uses, in whatever protocol it is then told.

Text is made of words of four bytes for each token, so an estimate of bytes / 4 is exact.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from msgspec.structs import replace

from gateway.core.usage import NO_USAGE, Usage
from gateway.simulator.scripts import Ask, Script

BYTES_PER_TOKEN = 4

_WORDS = ("the ", "old ", "cat ", "sat ", "and ", "saw ", "one ", "big ", "red ", "sun ")
_TOOL_INPUT_OVERHEAD = 3
"""Tokens that the JSON around a tool's one argument takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """One choice: a thought, then a text or the call of a tool."""

    thought: str = ""
    """As far as it is shown."""
    thought_tokens: int = 0
    """Shown or not; part of the output."""
    text: str = ""
    arguments: dict[str, str] | None = None
    """Of the tool; `None`: none is called, and there is a text."""

    @property
    def arguments_text(self) -> str:
        """As the model writes them, whatever the JSON around them looks like."""
        return json.dumps(self.arguments)


def content_of(script: Script, ask: Ask) -> Content:
    tokens = min(script.output_tokens, ask.max_tokens)
    thought_tokens = tokens // 2 if script.thinking else 0
    thought = words(thought_tokens) if script.thinking == "shown" else ""
    tokens -= thought_tokens
    if not calls_tool(script, ask):
        return Content(thought=thought, thought_tokens=thought_tokens, text=words(tokens))
    arguments = {"note": words(max(0, tokens - _TOOL_INPUT_OVERHEAD))}
    return Content(thought=thought, thought_tokens=thought_tokens, arguments=arguments)


def calls_tool(script: Script, ask: Ask) -> bool:
    return script.tool_use or ask.must_use_tool


def is_cut_short(script: Script, ask: Ask) -> bool:
    """Whether the request's maximum ends the answer."""
    return script.output_tokens > ask.max_tokens


def words(tokens: int) -> str:
    whole, rest = divmod(tokens, len(_WORDS))
    return "".join(_WORDS) * whole + "".join(_WORDS[:rest])


def divide(text: str, parts: int) -> list[str]:
    """`text` in at most `parts` parts of about the same length, none of them empty."""
    ends = [len(text) * number // parts for number in range(parts + 1)]
    return [text[start:end] for start, end in pairwise(ends) if end > start]


def usage_of(script: Script, ask: Ask, choices: int = 1) -> Usage:
    """What the answer will have reported when it is out."""
    counted = Usage(input=ask.input_tokens, output=min(script.output_tokens, ask.max_tokens) * choices)
    usage = script.usage or counted
    return replace(usage, output=usage.output + script.over_report)


def usage_field(script: Script, usage: dict[str, Any]) -> dict[str, Any]:
    """The field `usage` of a JSON object, or no field."""
    if script.omit_usage:
        return {}
    return {"usage": None if script.null_usage else usage}


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
