"""Which protocol a client speaks, and which of its metered calls an answer belongs to."""

from enum import Enum, StrEnum


class Protocol(StrEnum):
    """Whose envelopes, headers and event streams a path has."""

    ANTHROPIC = "anthropic"
    OPENAI = "openai"


class Api(Enum):
    """The calls that cost tokens; each says in a form of its own what it used."""

    MESSAGES = Protocol.ANTHROPIC, "messages"
    CHAT = Protocol.OPENAI, "chat"
    RESPONSES = Protocol.OPENAI, "responses"
    EMBEDDINGS = Protocol.OPENAI, "embeddings"

    def __init__(self, protocol: Protocol, _name: str) -> None:
        self.protocol = protocol
