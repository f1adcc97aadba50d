"""What the real SDKs of both providers, with either kind of client, try again: so often is the provider asked."""

import pytest

from gateway.core.records import Key
from gateway.core.usage import Usage
from gateway.simulator import Script, Simulator
from tests.both_kinds import Kind, taken
from tests.harness import ALL_CREDENTIALS, Database, serving, until
from tests.test_sdk_errors import Sdk, attempts_before, both_sdks, each_kind, failure

SOON = (("retry-after-ms", "20"),)


@both_sdks
@each_kind
async def test_a_provider_that_is_busy_or_broken_is_asked_again_when_it_says(
    provider: Simulator, database: Database, sdk: Sdk, kind: Kind
) -> None:
    """The SDK waits, not the gateway: each attempt is a request of its own, and the failed ones cost nothing."""
    text, key = await database.create_key("bob")
    good = Script(usage=Usage(input=9, output=5))
    statuses = (408, 409, 429, 500, 529)
    async with (
        serving(provider, database.path, ALL_CREDENTIALS) as origin,
        sdk.client(kind, origin, text, max_retries=1) as client,
    ):
        for use in sdk.uses.values():
            for status in statuses:
                provider.next(Script(status=status, extra_headers=SOON), good)
                assert await taken(client, use)
    count = len(sdk.uses) * len(statuses)
    assert [received.header("x-stainless-retry-count") for received in provider.messages()] == ["0", "1"] * count
    await until(lambda: len(database.rows(key)) == 2 * count)
    rows = database.rows(key)
    assert [row.status for row in rows] == [status for _ in sdk.uses for each in statuses for status in (each, 200)]
    assert sum(row.usage.charge for row in rows) == 14 * count


@both_sdks
@each_kind
@pytest.mark.parametrize(
    ("status", "should_retry", "attempts"),
    [(429, "false", 1), (500, "false", 1), (400, "true", 3), (400, None, 1), (429, None, 3)],
)
async def test_what_the_provider_says_of_trying_again_reaches_the_sdk(
    provider: Simulator,
    database: Database,
    sdk: Sdk,
    kind: Kind,
    status: int,
    should_retry: str | None,
    attempts: int,
) -> None:
    said = SOON if should_retry is None else (*SOON, ("x-should-retry", should_retry))
    provider.script = Script(status=status, extra_headers=said)
    text, key = await database.create_key("bob")
    async with (
        serving(provider, database.path, ALL_CREDENTIALS) as origin,
        sdk.client(kind, origin, text, max_retries=2) as client,
    ):
        for number, use in enumerate(sdk.uses.values(), start=1):
            error = await failure(sdk, client, use)
            assert (error.status_code, attempts_before(error)) == (status, str(attempts - 1))
            assert error.response.headers["retry-after-ms"] == "20"
            assert len(provider.messages()) == number * attempts
    assert [row.usage.charge for row in database.rows(key)] == [0] * len(provider.messages())


@both_sdks
@each_kind
async def test_a_pace_of_the_gateway_is_waited_for_and_then_works(
    provider: Simulator, database: Database, sdk: Sdk, kind: Kind
) -> None:
    """Tokens per minute, in a debt that is paid back within a second."""
    per_minute = 600_000
    text, key = await database.create_key("bob", tokens_per_minute=per_minute)
    provider.next(Script(usage=Usage(input=per_minute, output=2_000)))
    use = next(iter(sdk.uses.values()))
    async with (
        serving(provider, database.path, ALL_CREDENTIALS) as origin,
        sdk.client(kind, origin, text, max_retries=1) as client,
    ):
        for _ in range(2):
            await taken(client, use)
    assert [received.header("x-stainless-retry-count") for received in provider.messages()] == ["0", "1"]
    assert refusals_of(database, key) == 1


def refusals_of(database: Database, key: Key) -> int:
    [(count,)] = database.query("SELECT refused_tokens FROM key WHERE id = ?", key.row)
    return int(count)
