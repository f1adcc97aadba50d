"""OpenAI's counts out of its answers, and those of vendors that speak its protocol (PROTOCOLS B.3 to B.5, G.1).

The input that is stated includes what was read from the cache, the reverse of Anthropic's way, so it is taken
apart here; what was written to a cache stays part of the input (PROTOCOLS G.1). The output includes reasoning.

    prompt_tokens 1_200, cached_tokens 1_000, completion_tokens 90      200 input, 1_000 cache read, 90 output

Vendors differ: DeepSeek names cached tokens `prompt_cache_hit_tokens`, Moonshot has `cached_tokens` beside the
others, Groq puts the usage of a stream into `x_groq`, Moonshot into its last choice. xAI leaves reasoning out of
`completion_tokens`, which shows in `total_tokens`, the sum of all three.
"""

import msgspec

from gateway.core.counts import Count, Form, Reported, newest


class _Details(msgspec.Struct):
    cached_tokens: Count | None = None
    reasoning_tokens: Count | None = None


_NO_DETAILS = _Details()


class StatedUsage(msgspec.Struct):
    """A usage object. Chat and responses use different names for the same."""

    prompt_tokens: Count | None = None
    input_tokens: Count | None = None
    completion_tokens: Count | None = None
    output_tokens: Count | None = None
    total_tokens: Count | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None
    prompt_cache_hit_tokens: Count | None = None
    cached_tokens: Count | None = None

    def counts(self) -> list[int | None]:
        """(prompt, completion, total, cached, reasoning)."""
        of_prompt = self.prompt_tokens_details or self.input_tokens_details or _NO_DETAILS
        of_output = self.completion_tokens_details or self.output_tokens_details or _NO_DETAILS
        return [
            _first(self.prompt_tokens, self.input_tokens),
            _first(self.completion_tokens, self.output_tokens),
            self.total_tokens,
            _first(of_prompt.cached_tokens, self.prompt_cache_hit_tokens, self.cached_tokens),
            of_output.reasoning_tokens,
        ]


class Groq(msgspec.Struct):
    """What Groq adds to a chunk."""

    usage: StatedUsage | None = None


class Answer(msgspec.Struct):
    """What may hold the usage: a whole answer, or a chunk of one."""

    usage: StatedUsage | None = None
    x_groq: Groq | None = None

    def stated_usage(self) -> StatedUsage | None:
        """The usage in its own place, else in Groq's."""
        if self.usage is None and self.x_groq is not None:
            return self.x_groq.usage
        return self.usage


_DETAILS = Form(_Details)
USAGE = Form(
    StatedUsage,
    prompt_tokens_details=_DETAILS.read,
    input_tokens_details=_DETAILS.read,
    completion_tokens_details=_DETAILS.read,
    output_tokens_details=_DETAILS.read,
)
GROQ = Form(Groq, usage=USAGE.read)
_ANSWER = Form(Answer, usage=USAGE.read, x_groq=GROQ.read)


class Counts:
    """The newest counts that the provider gave, field by field; `None`: none yet."""

    __slots__ = ("_stated",)

    def __init__(self) -> None:
        self._stated: list[int | None] = [None] * 5

    def update(self, usage: StatedUsage | None) -> bool:
        """Take over a usage. Returns whether there is one."""
        if usage is None:
            return False
        self._stated = newest(self._stated, usage.counts())
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
    answer = _ANSWER.read(body) or Answer()
    counts.update(answer.stated_usage())
    return counts.reported()


def read_embeddings(body: bytes) -> Reported:
    """What an answer of embeddings says that it used: input only."""
    said = read_answer(body)
    return Reported(input=said.input, output=0, cache_read=said.cache_read)


def _first(*places: int | None) -> int | None:
    """The first of these counts that is known."""
    for count in places:
        if count is not None:
            return count
    return None
