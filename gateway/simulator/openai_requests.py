"""What the simulated provider reads of a request to OpenAI's endpoints. No I/O here."""

from typing import TypeVar

import msgspec

from gateway.simulator.requests import Refusal, tokens_of
from gateway.simulator.responses import UNLESS_ASKED
from gateway.simulator.scripts import ChatAsk, EmbeddingsAsk, ResponseAsk

_NO_MAXIMUM = 10**9
_MOST_CHOICES = 128
_DIMENSIONS = 1_536
_MOST_INPUTS = 2_048
"""Of embeddings; the real one's limit."""
T = TypeVar("T")


class _Named(msgspec.Struct):
    """A tool, or the choice of one: chats put the name into `function`, responses beside the type."""

    type: str = "function"
    name: str | None = None
    function: "_Named | None" = None

    @property
    def function_name(self) -> str | None:
        """Of another type of tool there is none."""
        if self.type != "function":
            return None
        return self.function.name if self.function else self.name


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class _Body(msgspec.Struct):
    """What chats and responses have in common."""

    model: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    tools: msgspec.Raw = msgspec.Raw()
    tool_choice: str | _Named | None = None

    def options(self) -> _StreamOptions:
        """Raises `Refusal` if there are some and no stream."""
        if self.stream_options is not None and not self.stream:
            text = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
            raise Refusal(400, text, param="stream_options")
        return self.stream_options or _StreamOptions()

    def tool(self) -> tuple[str, bool]:
        """The name of the one that would be called, and whether it must be. Raises `Refusal`."""
        tools = _decode(_TOOLS, bytes(self.tools)) if self.tools else None
        names = [name for tool in tools or () if (name := tool.function_name)]
        choice = self.tool_choice
        chosen = choice.function_name if isinstance(choice, _Named) else None
        name = chosen or (names[0] if names else "simulated_tool")
        return name, bool(names) and (choice == "required" or chosen is not None)


class _Chat(_Body):
    messages: msgspec.Raw = msgspec.Raw()
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None


class _Response(_Body):
    input: msgspec.Raw = msgspec.Raw()
    instructions: msgspec.Raw = msgspec.Raw()
    max_output_tokens: int | None = None
    background: bool | None = None


class _Embeddings(msgspec.Struct):
    model: str | None = None
    input: str | list[str | int | list[int]] | None = None
    encoding_format: str | None = None
    dimensions: int | None = None


_CHAT = msgspec.json.Decoder(_Chat)
_RESPONSE = msgspec.json.Decoder(_Response)
_EMBEDDINGS = msgspec.json.Decoder(_Embeddings)
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TOOLS = msgspec.json.Decoder(list[_Named] | None)


def read_chat(body: bytes) -> ChatAsk:
    """What `POST /v1/chat/completions` asks for. Raises `Refusal`."""
    chat = _decode(_CHAT, body)
    model = _required(chat.model, "model")
    if not chat.messages:
        raise _missing("messages")
    if chat.max_tokens is not None and chat.max_completion_tokens is not None:
        raise Refusal(400, "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.")
    if chat.n is not None and not 1 <= chat.n <= _MOST_CHOICES:
        raise Refusal(400, f"Invalid 'n': an integer from 1 to {_MOST_CHOICES}.", param="n")
    options, (tool, must_use_tool) = chat.options(), chat.tool()
    return ChatAsk(
        model=model,
        input_tokens=tokens_of((chat.messages, chat.tools)),
        max_tokens=_first(chat.max_completion_tokens, chat.max_tokens),
        streams=bool(chat.stream),
        tool=tool,
        must_use_tool=must_use_tool,
        choices=chat.n or 1,
        include_usage=bool(options.include_usage),
        include_obfuscation=options.include_obfuscation is not False,
    )


def read_response(body: bytes) -> ResponseAsk:
    """What `POST /v1/responses` asks for. Raises `Refusal`."""
    asked = _decode(_RESPONSE, body)
    model = _required(asked.model, "model")
    if not asked.input:
        raise _missing("input")
    if asked.background:
        raise Refusal(400, "The simulator does nothing in the background.", param="background")
    options, (tool, must_use_tool) = asked.options(), asked.tool()
    echoed = {name: value for name, value in _decode(_FIELDS, body).items() if name in UNLESS_ASKED}
    return ResponseAsk(
        model=model,
        input_tokens=tokens_of((asked.input, asked.instructions, asked.tools)),
        max_tokens=_first(asked.max_output_tokens),
        streams=bool(asked.stream),
        tool=tool,
        must_use_tool=must_use_tool,
        include_obfuscation=options.include_obfuscation is not False,
        echoed=msgspec.json.encode(echoed),
    )


def read_embeddings(body: bytes) -> EmbeddingsAsk:
    """What `POST /v1/embeddings` asks for. Raises `Refusal`."""
    asked = _decode(_EMBEDDINGS, body)
    model = _required(asked.model, "model")
    sizes = _sizes(asked)
    if asked.encoding_format not in (None, "float", "base64"):
        raise Refusal(400, "Invalid 'encoding_format': 'float' or 'base64'.", param="encoding_format")
    return EmbeddingsAsk(
        model=model,
        input_tokens=sum(sizes),
        inputs=len(sizes),
        dimensions=_DIMENSIONS if asked.dimensions is None else max(1, asked.dimensions),
        as_base64=asked.encoding_format == "base64",
    )


def _sizes(asked: _Embeddings) -> list[int]:
    """The tokens of each input: of a text, of a list of tokens, or of several of either."""
    match asked.input:
        case None:
            raise _missing("input")
        case str(text):
            return [_size(text)]
        case [int(), *_] as tokens:
            return [len(tokens)]
        case inputs if 1 <= len(inputs) <= _MOST_INPUTS:
            return [_size(each) for each in inputs]
    raise Refusal(400, f"Invalid 'input': 1 to {_MOST_INPUTS} of them.", param="input")


def _size(each: str | int | list[int]) -> int:
    match each:
        case str(text):
            return tokens_of([text.encode()])
        case int():
            return 1
        case tokens:
            return len(tokens)


def _decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise Refusal(400, f"Invalid type: {error}", code="invalid_type") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Refusal(400, "We could not parse the JSON body of your request.") from None


def _required(model: str | None, name: str) -> str:
    if model is None:
        raise _missing(name)
    return model


def _missing(name: str) -> Refusal:
    text = f"Missing required parameter: '{name}'."
    return Refusal(400, text, code="missing_required_parameter", param=name)


def _first(*maxima: int | None) -> int:
    return next((maximum for maximum in maxima if maximum is not None), _NO_MAXIMUM)
