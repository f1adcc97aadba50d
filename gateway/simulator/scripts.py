"""What the simulated provider can be told to do, and what it can be asked for.

A `Script` says how one answer goes, in whatever protocol; by default it is a truthful provider's:

    Script()                                            12 tokens in 4 deltas, usage as counted
    Script(output_tokens=50, events=50, pause_seconds=0.02)     a trickle
    Script(cut_after_events=3)                          a reset right after the third event
    Script(usage=Usage(input=9, output=5, cache_read=70), over_report=1_000)
    Script(status=529)                                  overloaded_error, in Anthropic's envelope
    Script(status=429, retry_after_seconds=7)
    Script(chat_usage="x_groq")                         a vendor that is compatible with OpenAI, nearly

What an answer then says is in content.py; its shape in messages.py, chat.py, responses.py and embeddings.py.
"""

from dataclasses import dataclass
from typing import Literal

from gateway.core.usage import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """How one answer goes. Events are counted as they stand on the wire, pings included, from 1."""

    # What is answered.
    status: int = 200
    error_type: str | None = None
    """`None`: the one that belongs to the status."""
    error_code: str | None = None
    """OpenAI's; `None`: the one that belongs to the status, if it has one."""
    error_param: str | None = None
    """OpenAI's."""
    error_message: str = "The simulator was told to fail."
    retry_after_seconds: int | None = None
    body: bytes | None = None
    """Exactly these bytes; `usage` then says what they report."""
    content_type: str | None = None
    extra_headers: tuple[tuple[str, str], ...] = ()
    output_tokens: int = 12
    """Of each choice, and never more than the request's maximum."""
    events: int = 4
    """Deltas into which the text is divided."""
    tool_use: bool = False
    """Answers with a tool call; without it, only a request that forces a tool gets one."""
    thinking: Literal["shown", "hidden"] | None = None
    """Half of the output is thought; OpenAI's endpoints count it as reasoning."""
    long_data_line_bytes: int = 0
    """At least so long is one data line: a search result (Anthropic), a piece of audio (chat), or an image, which
    the terminal event states again (responses)."""
    content_filter: bool = False
    """The answer ends because of what it says; a refusal in Anthropic's words."""
    response_failed: bool = False
    """A response ends with `response.failed`; other protocols have nothing like it."""

    # What is reported.
    usage: Usage | None = None
    """`None`: as counted."""
    over_report: int = 0
    """Output tokens reported on top; of embeddings, which have none, input tokens."""
    start_usage: Usage | None = None
    """What `message_start` reports; `None`: the same, with one output token."""
    restate_input: bool = False
    """`message_delta` repeats input and cache counts."""
    iterations: tuple[tuple[str, Usage], ...] = ()
    """Entries (type, usage) of the final `usage.iterations`."""
    message_deltas: int = 1
    omit_start_usage: bool = False
    """This and the four before it: Anthropic's messages only."""
    chat_usage: Literal["own_chunk", "last_chunk", "last_choice", "every_chunk", "late_choice", "x_groq"] = (
        "own_chunk"
    )
    """Where a streamed chat reports. OpenAI: in a chunk of its own without choices, if the request asks for it, and
    the other chunks have `null`. Vendors, asked or not (PROTOCOLS B.4): beside the last choice's end; within it; in
    every chunk, cumulative; in a chunk of its own with a choice that says nothing; as `x_groq.usage`."""
    cached_tokens: Literal["details", "prompt_cache_hit_tokens", "cached_tokens", "nowhere"] = "details"
    """Where OpenAI's endpoints report cache reads; the two fields are vendors', in the usage of chats."""
    reasoning_apart: bool = False
    """A vendor's: the completion tokens of a chat leave out the reasoning, which the total includes."""
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
    """Anthropic's; the others have none."""
    comments: int = 0
    """Lines that keep a stream alive and that no reader sees."""
    unknown_events: int = 0
    """Of chats: chunks without choices, as Azure sends them."""
    obfuscation: bool = False
    """OpenAI's padding of deltas, unless the request declines it."""
    trailing_bytes: bytes = b""
    """After the terminal event."""
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
    """What an answer depends on of a request; by itself, of one for a message of Anthropic's."""

    model: str
    input_tokens: int
    max_tokens: int
    streams: bool = False
    tool: str = "simulated_tool"
    must_use_tool: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatAsk(Ask):
    """Of a request for chat completions."""

    choices: int = 1
    include_usage: bool = False
    include_obfuscation: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseAsk(Ask):
    """Of a request for a response."""

    include_obfuscation: bool = True
    echoed: bytes = b"{}"
    """A JSON object: fields of the request that the answer states again, as they came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingsAsk(Ask):
    """Of a request for embeddings."""

    max_tokens: int = 0
    inputs: int
    dimensions: int
    as_base64: bool = False
