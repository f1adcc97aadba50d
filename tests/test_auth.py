"""Whose key it is: the same answer whether a key was proven before or comes for the first time."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from gateway.auth import Authenticator
from gateway.clock import Clock
from gateway.core import keys
from gateway.core.amounts import HOUR_MS
from gateway.core.errors import GatewayError, InvalidKey
from gateway.core.keys import ApiKey
from gateway.core.records import Key, Secret
from gateway.core.refusals import Signpost
from gateway.keystore import Directory, new_key_row
from tests.harness import now_ms, secret_of

API_KEYS = {
    name: ApiKey(keys.mint().key_id, keys.mint().secret)
    for name in ("alice", "bob", "disabled", "expired", "replaced", "ending")
}
ROWS = {name: new_key_row() for name in API_KEYS}
STRANGER = keys.mint()
WRONG_SECRET = ApiKey(API_KEYS["alice"].key_id, STRANGER.secret)


def make_secret(name: str, api_key: ApiKey) -> Secret:
    made = secret_of(Key(row=ROWS[name], name=name, created=0), api_key)
    ends = {"replaced": now_ms() - 1, "ending": now_ms() + HOUR_MS}
    return Secret(
        key=made.key,
        key_id=made.key_id,
        prefix=made.prefix,
        hash=made.hash,
        created=made.created,
        expires=ends.get(name),
    )


SECRETS = {name: make_secret(name, api_key) for name, api_key in API_KEYS.items()}


def directory_of(names: Sequence[str] = tuple(API_KEYS)) -> Directory:
    """These keys, each named for what is the matter with it."""
    found_keys, found_secrets = {}, {}
    for name in names:
        row = ROWS[name]
        expires = now_ms() - 1 if name == "expired" else None
        found_keys[row] = Key(row=row, name=name, created=0, expires=expires, disabled=name == "disabled")
        found_secrets[API_KEYS[name].key_id] = SECRETS[name]
    return Directory(keys=found_keys, secrets=found_secrets)


def with_secret(secret: Secret) -> Directory:
    """All keys, one of them with another secret than it has."""
    directory = directory_of()
    return Directory(keys=directory.keys, secrets={**directory.secrets, secret.key_id: secret})


def renewed_secret() -> Secret:
    """That of alice's key id, and the hash of a stranger's secret."""
    known, other = SECRETS["alice"], make_secret("alice", STRANGER)
    return Secret(key=known.key, key_id=known.key_id, prefix=known.prefix, hash=other.hash, created=known.created)


@contextmanager
def gate() -> Iterator[Authenticator]:
    authenticator = Authenticator(Clock(), Signpost(usage_url="", contact=""), lambda _key, _refusal: None)
    authenticator.replace(directory_of())
    try:
        yield authenticator
    finally:
        authenticator.close()


@asynccontextmanager
async def proven_gate() -> AsyncIterator[Authenticator]:
    """One that has seen every key there is."""
    with gate() as authenticator:
        for api_key in API_KEYS.values():
            await outcome(authenticator, bearing(api_key.text))
        yield authenticator


def bearing(text: str) -> CIMultiDict[str]:
    return CIMultiDict([("x-api-key", text)])


async def outcome(authenticator: Authenticator, headers: CIMultiDict[str]) -> str:
    """The name of the key, or what the client is told."""
    try:
        return (await authenticator.authenticate(headers)).name
    except GatewayError as error:
        return f"{type(error).__name__}: {error.message}"


TEXTS = st.sampled_from([api_key.text for api_key in (*API_KEYS.values(), STRANGER, WRONG_SECRET)])
CREDENTIALS = st.one_of(
    TEXTS,
    TEXTS,
    TEXTS.map(lambda text: f" {text}"),
    TEXTS.map(lambda text: text[:-1] + "x"),
    st.sampled_from(["", " ", "sk-proj-1", "\u00e9", "\udcff\ud83d"]),
)
HEADERS = st.one_of(
    st.tuples(st.sampled_from(["x-api-key", "X-Api-Key"]), CREDENTIALS),
    st.tuples(
        st.sampled_from(["authorization", "Authorization"]),
        st.tuples(st.sampled_from(["Bearer ", "bearer ", "Bearer  ", "Basic ", "Bearer\t"]), CREDENTIALS).map(
            "".join
        ),
    ),
    st.tuples(st.sampled_from(["host", "x-api-key-2"]), CREDENTIALS),
)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(HEADERS, max_size=3), min_size=20, max_size=20))
def test_a_key_that_was_proven_is_judged_like_one_that_comes_for_the_first_time(
    requests: list[list[tuple[str, str]]],
) -> None:
    async def compare() -> None:
        async with proven_gate() as proven:
            for headers in requests:
                with gate() as fresh:
                    expected = await outcome(fresh, CIMultiDict(headers))
                assert await outcome(proven, CIMultiDict(headers)) == expected, headers
                assert await outcome(proven, CIMultiDict(headers)) == expected, headers

    asyncio.run(compare())


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ([], "No API key was sent"),
        ([("x-api-key", "")], "No API key was sent"),
        ([("authorization", "Bearer")], "No API key was sent"),
        ([("authorization", f"Basic {API_KEYS['alice'].text}")], "No API key was sent"),
        ([("x-api-key", "sk-proj-1")], "This is not an OpusMax API key"),
        ([("x-api-key", API_KEYS["alice"].text), ("x-api-key", API_KEYS["bob"].text)], "Two different API keys"),
        ([("x-api-key", API_KEYS["bob"].text), ("authorization", f"Bearer {STRANGER.text}")], "Two different API"),
        ([("x-api-key", STRANGER.text)], "This API key is not known here"),
        ([("x-api-key", WRONG_SECRET.text)], "This API key is not known here"),
        ([("x-api-key", API_KEYS["disabled"].text)], "This API key is disabled"),
        ([("x-api-key", API_KEYS["expired"].text)], "This API key expired at"),
        ([("x-api-key", API_KEYS["replaced"].text)], "This API key was replaced by a new one"),
    ],
)
async def test_a_refusal_says_what_is_wrong_however_often_one_asks(
    headers: list[tuple[str, str]], told: str
) -> None:
    async with proven_gate() as authenticator:
        for _ in range(2):
            assert (await outcome(authenticator, CIMultiDict(headers))).startswith(f"InvalidKey: {told}")


@pytest.mark.parametrize(
    "headers",
    [
        [("x-api-key", API_KEYS["alice"].text)],
        [("authorization", f"Bearer {API_KEYS['alice'].text}")],
        [("Authorization", f"bearer   {API_KEYS['alice'].text}")],
        [("x-api-key", API_KEYS["alice"].text), ("authorization", f"Bearer {API_KEYS['alice'].text}")],
        [("x-api-key", "sk-ant-api03-x"), ("authorization", f"Bearer {API_KEYS['alice'].text}")],
        [("x-api-key", "sk-ant-api03-x"), ("authorization", f"Bearer  {API_KEYS['alice'].text}")],
        [("x-api-key", API_KEYS["alice"].text), ("authorization", "Bearer eyJhbGciOiJub25lIn0.e30.")],
    ],
)
async def test_either_header_will_do_and_another_services_credential_beside_it(
    headers: list[tuple[str, str]],
) -> None:
    with gate() as authenticator:
        assert [await outcome(authenticator, CIMultiDict(headers)) for _ in range(2)] == ["alice"] * 2


async def test_a_proof_ends_with_its_key_and_holds_through_changes_of_others() -> None:
    alice, bob = bearing(API_KEYS["alice"].text), bearing(API_KEYS["bob"].text)
    async with proven_gate() as authenticator:
        authenticator.replace(directory_of(["alice"]))
        assert await outcome(authenticator, alice) == "alice"
        assert (await outcome(authenticator, bob)).startswith("InvalidKey: This API key is not known here")
        authenticator.replace(directory_of(["bob"]))
        assert await outcome(authenticator, bob) == "bob"
        assert (await outcome(authenticator, alice)).startswith("InvalidKey: This API key is not known here")


async def proof_outlived_by(directory: Directory) -> tuple[str, str]:
    """What alice is told whose proof runs while the keys change, and what when she asks again."""
    alice = bearing(API_KEYS["alice"].text)
    with gate() as authenticator:
        first = asyncio.create_task(outcome(authenticator, alice))
        await asyncio.sleep(0)  # the proof runs
        authenticator.replace(directory)
        return await first, await outcome(authenticator, alice)


async def test_a_key_that_goes_while_it_is_proven_is_not_known_from_then_on() -> None:
    for told in await proof_outlived_by(directory_of(["bob"])):
        assert told.startswith("InvalidKey: This API key is not known here")


async def test_a_secret_that_becomes_another_while_it_is_proven_is_not_known_from_then_on() -> None:
    for told in await proof_outlived_by(with_secret(renewed_secret())):
        assert told.startswith("InvalidKey: This API key is not known here")


async def test_a_key_that_stays_while_it_is_proven_is_known() -> None:
    assert await proof_outlived_by(directory_of(["alice", "bob"])) == ("alice", "alice")


async def test_the_secret_that_counts_is_the_one_of_now() -> None:
    """A key id whose secret became another one: the old secret opens nothing, proven as it was."""
    async with proven_gate() as authenticator:
        authenticator.replace(with_secret(renewed_secret()))
        with pytest.raises(InvalidKey):
            await authenticator.authenticate(bearing(API_KEYS["alice"].text))
        assert (await authenticator.authenticate(bearing(WRONG_SECRET.text))).name == "alice"


async def test_a_secret_that_ends_is_looked_at_on_every_request() -> None:
    """Its time may be changed by the command line while it is known."""
    text, known = API_KEYS["ending"].text, SECRETS["ending"]
    ended = Secret(
        key=known.key,
        key_id=known.key_id,
        prefix=known.prefix,
        hash=known.hash,
        created=known.created,
        expires=now_ms() - 1,
    )
    async with proven_gate() as authenticator:
        assert await outcome(authenticator, bearing(text)) == "ending"
        authenticator.replace(with_secret(ended))
        assert (await outcome(authenticator, bearing(text))).startswith("InvalidKey: This API key was replaced")
