"""OpenAI's counts out of its answers, and those of vendors that speak its protocol (PROTOCOLS B.3 to B.5, G.1).

The input that is stated includes what was read from the cache, the reverse of Anthropic's way, so it is taken
apart here; what was written to a cache stays part of the input (PROTOCOLS G.1). The output includes reasoning.

    prompt_tokens 1_200, cached_tokens 1_000, completion_tokens 90      200 input, 1_000 cache read, 90 output

Vendors differ: DeepSeek names cached tokens `prompt_cache_hit_tokens`, Moonshot has `cached_tokens` beside the
others, Groq puts the usage of a stream into `x_groq`, Moonshot into its last choice. xAI leaves reasoning out of
`completion_tokens`, which shows in `total_tokens`, the sum of all three.
"""

import msgspec

from gateway.core.counts import NOTHING, Reported, believed, decode, newest


class _Usage(msgspec.Struct):
    """Raw, so that an odd value spoils none of the others. Chat and responses use different names for the same."""

    prompt_tokens: msgspec.Raw = NOTHING
    input_tokens: msgspec.Raw = NOTHING
    completion_tokens: msgspec.Raw = NOTHING
    output_tokens: msgspec.Raw = NOTHING
    total_tokens: msgspec.Raw = NOTHING
    prompt_tokens_details: msgspec.Raw = NOTHING
    input_tokens_details: msgspec.Raw = NOTHING
    completion_tokens_details: msgspec.Raw = NOTHING
    output_tokens_details: msgspec.Raw = NOTHING
    prompt_cache_hit_tokens: msgspec.Raw = NOTHING
    cached_tokens: msgspec.Raw = NOTHING


class _Details(msgspec.Struct):
    cached_tokens: msgspec.Raw = NOTHING
    reasoning_tokens: msgspec.Raw = NOTHING


class _Answer(msgspec.Struct):
    """What may hold the usage: a whole answer, a chunk of one, or its `x_groq`."""

    usage: msgspec.Raw = NOTHING
    x_groq: msgspec.Raw = NOTHING


_USAGE = msgspec.json.Decoder(_Usage)
_DETAILS = msgspec.json.Decoder(_Details)
_ANSWER = msgspec.json.Decoder(_Answer)


class Counts:
    """The newest counts that the provider gave, field by field; `None`: none yet."""

    __slots__ = ("_stated",)

    def __init__(self) -> None:
        self._stated: list[int | None] = [None] * 5

    def update(self, usage: msgspec.Raw) -> bool:
        """Take over a `usage` object. False, and nothing is taken over, if it is none."""
        written = decode(_USAGE, usage) if _is_object(usage) else None
        if written is None:
            return False
        self._stated = newest(self._stated, _counts_of(written))
        return True

    def reported(self) -> Reported:
        prompt, completion, total, cached, reasoning = self._stated
        fresh = None if prompt is None else max(0, prompt - (cached or 0))
        output = completion
        if prompt is not None and total is not None:
            if completion is None:
                output = max(0, total - prompt)
            elif reasoning and total == prompt + completion + reasoning:
                output = completion + reasoning
        return Reported(input=fresh, output=output, cache_read=cached)


def read_answer(body: bytes) -> Reported:
    """What a whole chat completion or response says that it used."""
    counts = Counts()
    answer = decode(_ANSWER, body) or _Answer()
    counts.update(usage_within(answer.usage, answer.x_groq))
    return counts.reported()


def read_embeddings(body: bytes) -> Reported:
    """What an answer of embeddings says that it used: input only."""
    said = read_answer(body)
    return Reported(input=said.input, output=0, cache_read=said.cache_read)


def usage_within(usage: msgspec.Raw, x_groq: msgspec.Raw) -> msgspec.Raw:
    """The usage in its own place, else in Groq's; not an object if it is in neither."""
    if _is_object(usage) or not _is_object(x_groq):
        return usage
    return (decode(_ANSWER, x_groq) or _Answer()).usage


def _is_object(raw: msgspec.Raw) -> bool:
    """Told by its first byte: most chunks say `null`, and a decoder that fails is slow."""
    return bytes(raw)[:1] == b"{"


def _counts_of(usage: _Usage) -> list[int | None]:
    """(prompt, completion, total, cached, reasoning)."""
    prompt_details = _details(usage.prompt_tokens_details, usage.input_tokens_details)
    output_details = _details(usage.completion_tokens_details, usage.output_tokens_details)
    return [
        _first(usage.prompt_tokens, usage.input_tokens),
        _first(usage.completion_tokens, usage.output_tokens),
        believed(usage.total_tokens),
        _first(prompt_details.cached_tokens, usage.prompt_cache_hit_tokens, usage.cached_tokens),
        believed(output_details.reasoning_tokens),
    ]


def _details(*places: msgspec.Raw) -> _Details:
    return next((details for place in places if (details := decode(_DETAILS, place)) is not None), _Details())


def _first(*places: msgspec.Raw) -> int | None:
    """The first of these counts that makes sense."""
    return next((count for place in places if (count := believed(place)) is not None), None)
