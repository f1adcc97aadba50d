"""Embeddings: one vector of length 1 for each input, as numbers or as base64 of 32-bit floats, low byte first."""

import struct
from base64 import b64encode
from typing import Any

from gateway.core.usage import Usage
from gateway.simulator.content import usage_field
from gateway.simulator.events import Part, encode
from gateway.simulator.openai_usage import embeddings_usage, whole_input
from gateway.simulator.scripts import EmbeddingsAsk, Script


def embeddings(script: Script, ask: EmbeddingsAsk) -> Part:
    tokens = whole_input(script.usage or Usage(input=ask.input_tokens)) + script.over_report
    data = [
        {"object": "embedding", "index": index, "embedding": _vector(index, ask)} for index in range(ask.inputs)
    ]
    whole: dict[str, Any] = {"object": "list", "data": data, "model": ask.model}
    whole |= usage_field(script, embeddings_usage(tokens))
    told = Usage(input=tokens) if script.reports_usage else None
    return Part(encode(script, whole), told, is_terminal=True)


def _vector(index: int, ask: EmbeddingsAsk) -> list[float] | str:
    """Different for neighbouring inputs: the signs alternate at another pace."""
    size = ask.dimensions**-0.5
    values = [-size if position // (index + 1) % 2 else size for position in range(ask.dimensions)]
    packed = struct.pack(f"<{ask.dimensions}f", *values)
    if ask.as_base64:
        return b64encode(packed).decode()
    return list(struct.unpack(f"<{ask.dimensions}f", packed))
