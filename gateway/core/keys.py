"""API keys: minting, recognising and showing them.

    sk-ant-om1-k7f3m2q9x4ab<43 characters of secret><6 characters of checksum>
    \\_prefix_/\\_ key id _/

The prefix makes clients that check for an Anthropic key accept it, and secret scanners find it. The key id is
public: it finds the row. The secret carries 256 random bits and is known to its holder alone. The checksum
(CRC-32 of all before it) is no protection; it lets junk be refused in a microsecond, before anything slow.
"""

import re
import secrets
from dataclasses import dataclass
from zlib import crc32

PREFIX = "sk-ant-om1-"
KEY_ID_LENGTH = 12
SECRET_LENGTH = 43
"""Characters of base 62: 256 bits."""
CHECKSUM_LENGTH = 6
"""Characters of base 62: 32 bits."""

_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_KEY_ID_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"
"""Without characters that look alike: people read key ids aloud."""
_SHOWN_OF_KEY_ID = 4

_GRAMMAR = re.compile(
    rf"{PREFIX}(?P<key_id>[{_KEY_ID_ALPHABET}]{{{KEY_ID_LENGTH}}})"
    rf"(?P<secret>[0-9A-Za-z]{{{SECRET_LENGTH}}})(?P<checksum>[0-9A-Za-z]{{{CHECKSUM_LENGTH}}})",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A well-formed key; whether it is a real one is not yet known."""

    key_id: str
    secret: str

    def __repr__(self) -> str:
        return f"ApiKey({self.key_id!r}, secret hidden)"

    @property
    def text(self) -> str:
        """The whole key, as its holder types it."""
        body = f"{PREFIX}{self.key_id}{self.secret}"
        return body + _checksum(body)

    @property
    def prefix(self) -> str:
        """What may be shown of the key."""
        return f"{PREFIX}{self.key_id[:_SHOWN_OF_KEY_ID]}…"


def mint() -> ApiKey:
    """A new random key."""
    return ApiKey(
        key_id="".join(secrets.choice(_KEY_ID_ALPHABET) for _ in range(KEY_ID_LENGTH)),
        secret="".join(secrets.choice(_BASE62) for _ in range(SECRET_LENGTH)),
    )


def parse(text: str) -> ApiKey | None:
    """The key that `text` spells, or `None` if it is none of ours, mistyped or cut short."""
    match = _GRAMMAR.fullmatch(text)
    if match is None or _checksum(text[:-CHECKSUM_LENGTH]) != match["checksum"]:
        return None
    return ApiKey(match["key_id"], match["secret"])


def key_id(text: str) -> str:
    """The public id in the text of a well-formed key."""
    return text[len(PREFIX) : len(PREFIX) + KEY_ID_LENGTH]


def _checksum(body: str) -> str:
    number = crc32(body.encode("ascii"))
    digits = []
    for _ in range(CHECKSUM_LENGTH):
        number, digit = divmod(number, len(_BASE62))
        digits.append(_BASE62[digit])
    return "".join(reversed(digits))
