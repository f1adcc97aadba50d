"""What the limits need to know of OpenAI's request bodies (DESIGN 5.2, PROTOCOLS B, H).

A hold is the estimated input and the largest output: what the body allows, or a default of the operator's where it
says nothing, times the number of choices. A body that names two maxima holds the larger one, since vendors differ
in which of them they obey.
"""

from gateway.core import openai_estimate as estimate
from gateway.core.errors import BadRequest
from gateway.core.estimate import Estimator
from gateway.core.limits import Hold
from gateway.core.objects import Fields
from gateway.core.parsing import (
    MAX_OUTPUT_TOKENS,
    ParsedRequest,
    is_given,
    read_body,
    read_count,
    read_fields,
    read_flag,
    read_model,
)
from gateway.core.splice import Splice, ask_for_usage

MAX_CHOICES = 128
"""OpenAI's own limit for `n`."""

_CHAT_READ = frozenset(
    {
        *("model", "max_completion_tokens", "max_tokens", "n", "stream", "stream_options"),
        *("messages", "tools", "web_search_options"),
    }
)
_STREAM_OPTIONS_READ = frozenset({"include_usage"})
_RESPONSES_READ = frozenset(
    {
        *("model", "max_output_tokens", "stream", "background"),
        *("input", "tools", "previous_response_id", "conversation", "prompt"),
    }
)
_EMBEDDINGS_READ = frozenset({"model", "input"})


def parse_chat(body: bytes, estimator: Estimator) -> ParsedRequest:
    """A body of `POST /v1/chat/completions`. Raises `BadRequest`."""
    fields = read_body(body, _CHAT_READ)
    maxima = [read_count(fields, name, MAX_OUTPUT_TOKENS) for name in ("max_completion_tokens", "max_tokens")]
    output = max(filter(None, maxima), default=estimator.default_output_tokens)
    choices = read_count(fields, "n", MAX_CHOICES) or 1
    stream = read_flag(fields, "stream")
    bound = estimate.of_chat(body, fields, estimator)
    return ParsedRequest(
        model=read_model(fields),
        hold=Hold(input=bound.tokens, hosted_tools=bound.hosted_tools, output=output * choices),
        stream=stream,
        usage_splice=_usage_splice(body, fields) if stream else None,
    )


def parse_responses(body: bytes, estimator: Estimator) -> ParsedRequest:
    """A body of `POST /v1/responses`. Raises `BadRequest`."""
    fields = read_body(body, _RESPONSES_READ)
    if read_flag(fields, "background"):
        raise BadRequest(
            "background: This server cannot serve background responses, because it cannot count what they use."
            " Leave it out, or set it to false."
        )
    output = read_count(fields, "max_output_tokens", MAX_OUTPUT_TOKENS) or estimator.default_output_tokens
    bound = estimate.of_responses(body, fields, estimator)
    return ParsedRequest(
        model=read_model(fields),
        hold=Hold(input=bound.tokens, hosted_tools=bound.hosted_tools, output=output),
        stream=read_flag(fields, "stream"),
    )


def parse_embeddings(body: bytes, estimator: Estimator) -> ParsedRequest:
    """A body of `POST /v1/embeddings`, which has no output and hides no input. Raises `BadRequest`."""
    del estimator
    fields = read_body(body, _EMBEDDINGS_READ)
    hold = Hold(input=estimate.of_embeddings(body, fields), output=0)
    return ParsedRequest(model=read_model(fields), hold=hold)


def _usage_splice(body: bytes, fields: Fields) -> Splice | None:
    """What a streamed body needs to ask for its usage; `None` if it does."""
    options = None
    if is_given(fields, "stream_options"):
        options = read_fields(fields["stream_options"], _STREAM_OPTIONS_READ, "stream_options")
        if read_flag(options, "include_usage"):
            return None
    return ask_for_usage(body, fields, options)
