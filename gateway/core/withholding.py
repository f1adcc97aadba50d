"""Keeping secrets out of bytes that pass: an answer that repeats one is cut off before it is out.

    secret "sk-provider-1234", chunks "…used sk-prov", "ider-1234 …"
    "…used " passes, "sk-prov" waits for what follows, and then the secret is there: RepeatsSecret

Nothing else waits: what cannot be the beginning of a secret passes at once. A beginning that is shorter than
`TELLING_BYTES` says nothing, and passes too.
"""

from collections.abc import Sequence

TELLING_BYTES = 8


class RepeatsSecret(ValueError):
    """The bytes hold a secret."""


class Withholding:
    """Looks for `secrets` in bytes that come in chunks."""

    __slots__ = ("_longest", "_passed", "_secrets", "_waiting")

    def __init__(self, secrets: Sequence[bytes]) -> None:
        self._secrets = secrets
        self._longest = max(map(len, secrets), default=0)
        self._passed = b""
        """The last bytes that passed: a secret may have begun in them."""
        self._waiting = b""

    def feed(self, chunk: bytes) -> bytes:
        """What may pass now. Raises `RepeatsSecret`."""
        waiting = self._waiting + chunk
        seen = self._passed + waiting
        if any(secret in seen for secret in self._secrets):
            raise RepeatsSecret
        begun = max((_beginning(seen, secret) for secret in self._secrets), default=0)
        held = min(begun, len(waiting))
        passing, self._waiting = waiting[: len(waiting) - held], waiting[len(waiting) - held :]
        self._passed = (self._passed + passing)[-self._longest :]
        return passing

    def rest(self) -> bytes:
        """What still waited when the end came; b"" the second time."""
        waiting, self._waiting = self._waiting, b""
        return waiting


def _beginning(data: bytes, secret: bytes) -> int:
    """How many bytes at the end of `data` are the beginning of `secret`, if they tell anything."""
    longest = min(len(data), len(secret) - 1)
    return next((size for size in range(longest, TELLING_BYTES - 1, -1) if data.endswith(secret[:size])), 0)
