"""Who is calling: the key out of the headers, its secret proven, its record found.

A key is proven once with argon2id, which is slow on purpose, on a thread of its own. From then on the keyed digest
of its text (BLAKE2b under a random pepper of this process) stands for the proof: a request that carries it, and no
other credential, needs no look at its form. Disabling, expiry and deletion are looked at on every request. Whatever
goes wrong here is a refusal.
"""

import asyncio
import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from multidict import MultiMapping, istr

from gateway.clock import Clock
from gateway.core import amounts, keys
from gateway.core.errors import InvalidKey, LimitExceeded
from gateway.core.keys import ApiKey
from gateway.core.records import Key, KeyRow, Refusal, Secret
from gateway.core.refusals import Signpost
from gateway.hashing import step_back, verify_secret
from gateway.keystore import Directory

MAX_WAITING_KEYS = 32
"""Distinct keys that may wait for their proof, each some 30 ms: a whole team may come at once after a restart. Only
keys with a key id that exists get so far."""
MAX_WAITING_PAGE_KEYS = 2
"""The smaller share of the Check Usage page, which anyone may ask."""
MAX_REMEMBERED_FAILURES = 1_024
"""Wrong secrets that are known to be wrong: a client that loops with an old key costs one proof."""
BUSY_RETRY_SECONDS = 2
_DIGEST_BYTES = 32

_API_KEY_HEADER = istr("x-api-key")
_AUTHORIZATION_HEADER = istr("authorization")


class Authenticator:
    """Turns credentials into keys."""

    def __init__(self, clock: Clock, signpost: Signpost, count_refusal: Callable[[KeyRow, Refusal], None]) -> None:
        self.directory = Directory(keys={}, secrets={})
        """All keys there are; replaced as a whole when the command line changed something."""
        self._clock = clock
        self._signpost = signpost
        self._count_refusal = count_refusal
        self._pepper = secrets.token_bytes(32)
        self._proven: dict[bytes, Secret] = {}
        """Digest of a proven key -> its secret in the directory."""
        self._failed: OrderedDict[bytes, None] = OrderedDict()
        self._proving: dict[bytes, asyncio.Future[bool]] = {}
        self._thread = ThreadPoolExecutor(1, "argon2", initializer=step_back)

    def replace(self, directory: Directory) -> None:
        """Put a new set of keys in force."""
        before = self.directory.secrets
        unchanged = {key_id: secret for key_id, secret in directory.secrets.items() if before.get(key_id) == secret}
        self.directory = directory
        self._proven = {
            digest: unchanged[secret.key_id]
            for digest, secret in self._proven.items()
            if secret.key_id in unchanged
        }
        self._failed.clear()

    async def authenticate(self, headers: MultiMapping[str]) -> Key:
        """The key that a request carries, fit for use. Raises `InvalidKey` or `LimitExceeded`."""
        credentials = _credentials(headers)
        secret = self._proven.get(self._digest(credentials[0])) if len(credentials) == 1 else None
        if secret is None:
            secret = await self._prove(self._single_key(credentials), MAX_WAITING_KEYS)
        key = self._key_of(secret)
        self._check_usable(key)
        return key

    def recheck(self, key: KeyRow) -> Key:
        """The record of a key that was authenticated before, if it is still fit for use. Raises `InvalidKey`."""
        record = self.directory.keys.get(key)
        if record is None:
            raise self._unknown_key()
        self._check_usable(record)
        return record

    async def authenticate_owner(self, text: str) -> Key:
        """The key that somebody typed to see its usage, even if it is disabled or expired."""
        return self._key_of(await self._prove(self._well_formed(text), MAX_WAITING_PAGE_KEYS))

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _single_key(self, credentials: Sequence[str]) -> ApiKey:
        """Some clients send two credentials, one of them another service's."""
        found = {key for credential in credentials if (key := keys.parse(credential)) is not None}
        if len(found) > 1:
            raise InvalidKey("Two different API keys were sent; send one.")
        return found.pop() if found else self._well_formed(credentials[0] if credentials else "")

    def _well_formed(self, text: str) -> ApiKey:
        key = keys.parse(text.strip(" \t"))
        if key is None:
            what = "This is not an OpusMax API key" if text else "No API key was sent"
            raise InvalidKey(f"{what}: a key starts with {keys.PREFIX}. Ask {self._signpost.whom_to_ask} for one.")
        return key

    async def _prove(self, api_key: ApiKey, max_waiting: int) -> Secret:
        """The secret of the directory that a key spells."""
        secret = self.directory.secrets.get(api_key.key_id)
        if secret is None:
            raise self._unknown_key()
        digest = self._digest(api_key.text)
        if digest not in self._proven and not await self._verify(digest, secret, api_key, max_waiting):
            raise self._unknown_key()
        known = self.directory.secrets.get(api_key.key_id)
        if known is None or known.hash != secret.hash:  # it may have gone while the proof ran
            raise self._unknown_key()
        return known

    def _key_of(self, secret: Secret) -> Key:
        """The key that a proven secret is good for, until it expires."""
        if secret.expires is not None and secret.expires <= self._clock.wall_ms():
            raise InvalidKey(f"This API key was replaced by a new one. Ask {self._signpost.whom_to_ask} for it.")
        return self.directory.keys[secret.key]

    def _digest(self, credential: str) -> bytes:
        """What stands for a credential, whatever was sent as one: nobody can find another text with the same."""
        text = credential.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, key=self._pepper, digest_size=_DIGEST_BYTES).digest()

    async def _verify(self, digest: bytes, secret: Secret, api_key: ApiKey, max_waiting: int) -> bool:
        """Prove a key, once however many requests wait for the same one."""
        if digest in self._failed:
            return False
        proof = self._proving.get(digest)
        if proof is None:
            if len(self._proving) >= max_waiting:
                raise LimitExceeded(
                    "Too many new API keys are being checked just now. Try again in a moment.",
                    retry_after_seconds=BUSY_RETRY_SECONDS,
                )
            loop = asyncio.get_running_loop()
            proof = loop.run_in_executor(self._thread, verify_secret, secret.hash, api_key.secret)
            self._proving[digest] = proof
            proof.add_done_callback(lambda done: self._remember(digest, secret, done))
        return await asyncio.shield(proof)

    def _remember(self, digest: bytes, secret: Secret, proof: asyncio.Future[bool]) -> None:
        del self._proving[digest]
        if proof.cancelled() or proof.exception() is not None:
            return
        if proof.result():
            if self.directory.secrets.get(secret.key_id) == secret:  # else it went or changed while the proof ran
                self._proven[digest] = secret
        else:
            self._failed[digest] = None
            if len(self._failed) > MAX_REMEMBERED_FAILURES:
                self._failed.popitem(last=False)

    def _check_usable(self, key: Key) -> None:
        if key.disabled:
            why = "is disabled"
        elif key.expires is not None and key.expires <= self._clock.wall_ms():
            why = f"expired at {amounts.show_time(key.expires)}"
        else:
            return
        self._count_refusal(key.row, Refusal.INACTIVE)
        raise InvalidKey(f"This API key {why}. Ask {self._signpost.whom_to_ask}.", refusal=Refusal.INACTIVE)

    def _unknown_key(self) -> InvalidKey:
        return InvalidKey(f"This API key is not known here. Ask {self._signpost.whom_to_ask}.")


def _credentials(headers: MultiMapping[str]) -> list[str]:
    """What a request carries in the headers that are for it."""
    bearers = map(_bearer, headers.getall(_AUTHORIZATION_HEADER, ()))
    return [credential for credential in (*headers.getall(_API_KEY_HEADER, ()), *bearers) if credential]


def _bearer(authorization: str) -> str:
    """A credential of the scheme that API keys come with; '' for any other. One space or several stand between the
    scheme and its credential (RFC 9110, 11.4)."""
    scheme, _, credential = authorization.partition(" ")
    return credential.strip(" \t") if scheme.lower() == "bearer" else ""
