"""Usage as OpenAI's endpoints and their compatible vendors put it, and what a reader takes from it (PROTOCOLS B.3).

The reverse of Anthropic's: the input includes what was read from and written to the cache, the output what was
reasoned. A reader takes the cached tokens apart; the written ones are for information only and stay in the input.

    Script(usage=Usage(input=100, cache_write=20, cache_read=1_000, output=50))
        prompt_tokens 1120, of them cached 1000 and written 20    reported: input 120, cache_read 1000, output 50
"""

from typing import Any

from gateway.core.usage import Usage
from gateway.simulator.scripts import Script


def chat_usage(script: Script, usage: Usage, reasoning: int) -> dict[str, Any]:
    reasoning = min(reasoning, usage.output)
    counts: dict[str, Any] = {
        "prompt_tokens": whole_input(usage),
        "completion_tokens": usage.output - (reasoning if script.reasoning_apart else 0),
        "total_tokens": whole_input(usage) + usage.output,
    }
    match script.cached_tokens:
        case "details":
            counts["prompt_tokens_details"] = _cache_counts(usage) | {"audio_tokens": 0}
        case "prompt_cache_hit_tokens":
            counts["prompt_cache_hit_tokens"] = usage.cache_read
            counts["prompt_cache_miss_tokens"] = whole_input(usage) - usage.cache_read
        case "cached_tokens":
            counts["cached_tokens"] = usage.cache_read
        case "nowhere":
            pass
    nothing = {"audio_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0}
    return counts | {"completion_tokens_details": {"reasoning_tokens": reasoning} | nothing}


def response_usage(script: Script, usage: Usage, reasoning: int) -> dict[str, Any]:
    details = {} if script.cached_tokens == "nowhere" else {"input_tokens_details": _cache_counts(usage)}
    return {
        "input_tokens": whole_input(usage),
        **details,
        "output_tokens": usage.output,
        "output_tokens_details": {"reasoning_tokens": min(reasoning, usage.output)},
        "total_tokens": whole_input(usage) + usage.output,
    }


def embeddings_usage(tokens: int) -> dict[str, Any]:
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def told_by(script: Script, usage: Usage) -> Usage | None:
    """What a reader of a chat's or a response's usage takes from it."""
    if not script.reports_usage:
        return None
    cached = 0 if script.cached_tokens == "nowhere" else usage.cache_read
    return Usage(input=whole_input(usage) - cached, output=usage.output, cache_read=cached)


def whole_input(usage: Usage) -> int:
    return usage.input + usage.cache_write + usage.cache_read


def _cache_counts(usage: Usage) -> dict[str, Any]:
    return {"cached_tokens": usage.cache_read, "cache_write_tokens": usage.cache_write}
