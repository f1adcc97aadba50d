"""Limits hold over real sockets, whatever comes at once, and refusals say so in the protocol's own form."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from gateway.core.records import Budget, Key
from gateway.core.usage import NO_USAGE, Usage
from gateway.database import DatabaseError
from gateway.simulator import Script, Simulator
from tests.harness import MODEL, Database, ask, hold_of, serving

HOUR_MS = 3_600_000
HOLD = hold_of(ask(stream=True))


async def send(origin: str, key: str, body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
    async with (
        aiohttp.ClientSession(origin) as session,
        session.post("/v1/messages", json=body, headers={"x-api-key": key}) as answer,
    ):
        content = await answer.read()
        headers = {name.lower(): value for name, value in answer.headers.items()}
        return answer.status, headers, json.loads(content) if content.startswith(b"{") else content


async def send_many(origin: str, key: str, bodies: list[dict[str, Any]]) -> list[int]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(origin, connector=connector) as session:

        async def one(body: dict[str, Any]) -> int:
            async with session.post("/v1/messages", json=body, headers={"x-api-key": key}) as answer:
                await answer.read()
                return answer.status

        return await asyncio.gather(*map(one, bodies))


async def test_a_budget_is_not_overshot_however_many_come_at_once(provider: Simulator, database: Database) -> None:
    budget = 10 * HOLD + 50
    text, key = await database.create_key(budgets=[(budget, HOUR_MS)])
    provider.script = Script(output_tokens=100, first_byte_delay_seconds=0.3)
    async with serving(provider, database.path) as origin:
        statuses = await send_many(origin, text, [ask(stream=n % 2 == 0) for n in range(200)])
    rows = database.rows(key)
    assert set(statuses) == {200, 429}
    assert sum(row.usage.charge for row in rows) <= budget
    assert statuses.count(200) == len(rows) >= budget // HOLD
    assert len(provider.messages()) == len(rows)


async def test_a_provider_that_reports_more_than_was_held_is_charged_in_full_and_blocks(
    provider: Simulator, database: Database
) -> None:
    text, key = await database.create_key(budgets=[(200, HOUR_MS)])
    provider.script = Script(over_report=500)
    async with serving(provider, database.path) as origin:
        assert (await send(origin, text, ask()))[0] == 200
        status, headers, body = await send(origin, text, ask())
    [row] = database.rows(key)
    over = row.usage.charge - 200
    assert over > 300
    assert (status, body["error"]["type"]) == (429, "billing_error")
    assert f"(over by {over:,})" in body["error"]["message"]
    assert headers["x-should-retry"] == "false"
    assert HOUR_MS / 1000 - 5 <= int(headers["retry-after"]) <= HOUR_MS / 1000 + 1


async def test_a_request_that_can_never_fit_is_told_so_and_forwarded_nowhere(
    provider: Simulator, database: Database
) -> None:
    text, key = await database.create_key(budgets=[(100, HOUR_MS)])
    async with serving(provider, database.path) as origin:
        status, _, body = await send(origin, text, ask())
    assert (status, body["error"]["type"]) == (400, "invalid_request_error")
    assert "can never fit" in body["error"]["message"]
    assert provider.messages() == []
    assert database.rows(key) == []


async def test_a_lifetime_budget_names_no_time_but_whom_to_ask(provider: Simulator, database: Database) -> None:
    text, _ = await database.create_key(budgets=[(140, None)])
    async with serving(provider, database.path, contact="ops@example.org") as origin:
        await send(origin, text, ask())
        status, headers, body = await send(origin, text, ask())
    assert (status, body["error"]["type"]) == (429, "billing_error")
    assert "retry-after" not in headers
    assert "ops@example.org" in body["error"]["message"]


async def test_requests_per_minute_are_held_and_told_with_a_true_wait(
    provider: Simulator, database: Database
) -> None:
    text, _ = await database.create_key(requests_per_minute=3)
    async with serving(provider, database.path) as origin:
        statuses = await send_many(origin, text, [ask()] * 10)
        _, headers, body = await send(origin, text, ask())
    assert sorted(statuses) == [200] * 3 + [429] * 7
    assert body["error"]["type"] == "rate_limit_error"
    assert 17 <= int(headers["retry-after"]) <= 20
    assert headers["anthropic-ratelimit-requests-limit"] == "3"
    assert "x-should-retry" not in headers


async def test_tokens_per_minute_is_a_pace_that_runs_into_debt(provider: Simulator, database: Database) -> None:
    text, _ = await database.create_key(tokens_per_minute=60)
    provider.script = Script(usage=Usage(input=100, output=20))
    async with serving(provider, database.path) as origin:
        assert (await send(origin, text, ask()))[0] == 200
        status, headers, _ = await send(origin, text, ask())
    assert status == 429
    assert 58 <= int(headers["retry-after"]) <= 61


async def test_concurrency_is_held(provider: Simulator, database: Database) -> None:
    text, _ = await database.create_key(concurrency=2)
    provider.script = Script(first_byte_delay_seconds=0.3)
    async with serving(provider, database.path) as origin:
        statuses = await send_many(origin, text, [ask()] * 6)
        provider.script = Script()
        assert (await send(origin, text, ask()))[0] == 200
    assert sorted(statuses) == [200] * 2 + [429] * 4


async def test_with_overdraft_a_request_may_start_while_the_budget_is_not_used_up(
    provider: Simulator, database: Database
) -> None:
    text, key = await database.create_key(budgets=[(100, HOUR_MS)], overdraft=HOLD)
    provider.script = Script(usage=Usage(input=10, output=80))
    async with serving(provider, database.path) as origin:
        statuses = [(await send(origin, text, ask()))[0] for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert sum(row.usage.charge for row in database.rows(key)) == 180


async def test_a_model_that_is_not_allowed_is_forbidden(provider: Simulator, database: Database) -> None:
    text, _ = await database.create_key(models=("claude-haiku-*",))
    async with serving(provider, database.path) as origin:
        status, _, body = await send(origin, text, ask(model=MODEL))
        allowed, _, _ = await send(origin, text, ask(model="claude-haiku-4-5-20251001"))
    assert (status, body["error"]["type"]) == (403, "permission_error")
    assert "claude-haiku-*" in body["error"]["message"]
    assert allowed == 200


@pytest.mark.parametrize(
    ("limits", "said"),
    [({"disabled": True}, "is disabled"), ({"expires": 1_000_000}, "expired at 1970-01-01")],
)
async def test_a_key_that_is_not_in_force_is_told_which_and_whom_to_ask(
    provider: Simulator, database: Database, limits: dict[str, Any], said: str
) -> None:
    text, _ = await database.create_key(**limits)
    async with serving(provider, database.path, contact="ops@example.org") as origin:
        status, headers, body = await send(origin, text, ask())
    assert (status, body["error"]["type"], headers["x-should-retry"]) == (401, "authentication_error", "false")
    assert said in body["error"]["message"]
    assert "ops@example.org" in body["error"]["message"]
    assert provider.messages() == []


async def test_refusals_are_counted_by_reason_and_leave_no_row(provider: Simulator, database: Database) -> None:
    text, key = await database.create_key(requests_per_minute=2, models=(MODEL,))
    async with serving(provider, database.path) as origin:
        for body in [ask(), ask(), ask(), ask(), ask(model="other")]:
            await send(origin, text, body)
    assert database.query("SELECT refused_requests, refused_model, total_requests FROM key") == [(2, 1, 2)]
    assert len(database.rows(key)) == 2


async def test_five_hour_and_seven_day_windows_stand_in_the_headers_of_a_success(
    provider: Simulator, database: Database
) -> None:
    text, _ = await database.create_key(budgets=[(1_000, 5 * HOUR_MS), (10_000, 7 * 24 * HOUR_MS)])
    provider.script = Script(usage=Usage(input=400, output=100))
    async with serving(provider, database.path) as origin:
        await send(origin, text, ask())
        _, headers, _ = await send(origin, text, ask())
    assert headers["anthropic-ratelimit-unified-5h-utilization"] == "0.5000"
    assert headers["anthropic-ratelimit-unified-7d-utilization"] == "0.0500"
    assert headers["anthropic-ratelimit-unified-status"] == "allowed"


async def test_limits_are_the_same_after_a_restart(provider: Simulator, database: Database) -> None:
    text, key = await database.create_key(
        budgets=[(700, HOUR_MS), (900, None)], requests_per_minute=5, tokens_per_minute=5_000
    )
    provider.script = Script(usage=Usage(input=50, output=50, cache_read=1_000))
    seen = []
    for _ in range(4):
        async with serving(provider, database.path) as origin:
            seen.append((await send(origin, text, ask()))[0])
    assert seen == [200, 200, 200, 429]
    assert [row.usage.charge for row in database.rows(key)] == [200] * 3


async def test_a_row_that_a_crash_left_in_flight_is_kept_at_its_hold(
    provider: Simulator, database: Database
) -> None:
    text, key = await database.create_key(budgets=[(1_000, HOUR_MS)])
    provider.script = Script(stall_after_events=1)
    async with (
        serving(provider, database.path, drain_seconds="1s") as origin,
        aiohttp.ClientSession(origin) as session,
        session.post("/v1/messages", json=ask(stream=True), headers={"x-api-key": text}) as answer,
    ):
        await answer.content.readany()
        in_flight = database.query("SELECT * FROM request")
        snapshot = database.path.with_name("crashed.db")
        database.query("VACUUM INTO ?", str(snapshot))
    crashed = Database(snapshot)
    provider.script = Script()
    async with serving(provider, snapshot) as origin:
        await send(origin, text, ask())
    left, _ = crashed.rows(key)
    assert in_flight[0][4] is None
    assert (left.status, left.estimated) == (500, True)
    assert left.usage.charge == HOLD
    assert crashed.query("SELECT total_requests, total_input FROM key")[0][0] == 2


async def test_an_edit_works_at_once_and_takes_nothing_back(provider: Simulator, database: Database) -> None:
    text, key = await database.create_key(budgets=[(150, HOUR_MS)])
    provider.script = Script(usage=Usage(input=60, output=40))

    async def until_status(origin: str, wanted: int) -> None:
        async with asyncio.timeout(5):
            while (await send(origin, text, ask()))[0] != wanted:
                await asyncio.sleep(0.05)

    async with serving(provider, database.path) as origin:
        assert (await send(origin, text, ask()))[0] == 200
        assert (await send(origin, text, ask()))[0] == 429
        await database.edit_key(key, budgets=(Budget(tokens=250, window_ms=HOUR_MS),))
        await until_status(origin, 200)  # 100 of 250 are used, so one more fits, and then none
        assert (await send(origin, text, ask()))[0] == 429
        await database.edit_key(key, disabled=True)
        await until_status(origin, 401)
        await database.edit_key(key, disabled=False, budgets=())
        await until_status(origin, 200)
    assert all(row.usage != NO_USAGE for row in database.rows(key))


async def test_a_key_that_is_disabled_while_its_request_is_still_uploading_gets_nowhere(
    provider: Simulator, database: Database, alice: tuple[str, Key]
) -> None:
    body = json.dumps(ask()).encode()
    head = f"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: {alice[0]}\r\ncontent-length: {len(body)}\r\n\r\n"
    async with serving(provider, database.path) as origin:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(origin.rpartition(":")[2]))
        writer.write(head.encode() + body[:20])
        await asyncio.sleep(0.2)
        await database.edit_key(alice[1], disabled=True)
        async with asyncio.timeout(5):
            while (await send(origin, alice[0], ask()))[0] != 401:
                await asyncio.sleep(0.05)
        forwarded = len(provider.messages())
        writer.write(body[20:])
        assert (await reader.readline()).startswith(b"HTTP/1.1 401")
        writer.close()
    assert len(provider.messages()) == forwarded


async def test_stopping_lets_running_answers_finish_and_refuses_new_ones(
    provider: Simulator, database: Database, alice: tuple[str, Key]
) -> None:
    provider.script = Script(output_tokens=60, events=30, pause_seconds=0.03)

    async def ask_late(origin: str, path: str) -> tuple[int, bool]:
        await asyncio.sleep(0.3)  # the server stops meanwhile, and the stream still runs
        async with (
            aiohttp.ClientSession(origin) as session,
            session.post(path, json=ask(), headers={"x-api-key": alice[0]}) as answer,
        ):
            return answer.status, "retry-after" in answer.headers

    async with serving(provider, database.path) as origin:
        running = asyncio.create_task(send(origin, alice[0], ask(stream=True)))
        late = [
            asyncio.create_task(ask_late(origin, path)) for path in ("/v1/messages", "/v1/messages/count_tokens")
        ]
        await provider.arrived(1)
        await asyncio.sleep(0.1)
    status, _, body = await running
    assert status == 200
    assert b"message_stop" in body
    assert await asyncio.gather(*late) == [(503, True), (503, True)]
    assert [row.status for row in database.rows(alice[1])] == [200]


async def test_a_team_that_comes_at_once_after_a_restart_is_let_in(provider: Simulator, database: Database) -> None:
    keys = [(await database.create_key(f"member{number}"))[0] for number in range(20)]
    async with serving(provider, database.path) as origin:
        answers = await asyncio.gather(*(send(origin, key, ask()) for key in keys))
    assert {answer[0] for answer in answers} == {200}


async def test_an_answer_that_cannot_finish_in_the_drain_time_breaks_and_is_settled(
    provider: Simulator, database: Database, alice: tuple[str, Key]
) -> None:
    provider.script = Script(stall_after_events=3)
    async with serving(provider, database.path, drain_seconds="1s") as origin:
        running = asyncio.create_task(send(origin, alice[0], ask(stream=True)))
        await provider.arrived(1)
        await asyncio.sleep(0.1)
    with pytest.raises(aiohttp.ClientPayloadError):
        await running
    [row] = database.rows(alice[1])
    assert (row.status, row.estimated) == (503, True)


@pytest.mark.usefixtures("origin")
async def test_a_second_server_on_the_same_file_refuses_to_start(provider: Simulator, database: Database) -> None:
    with pytest.raises(DatabaseError, match="another server"):
        async with serving(provider, database.path):
            pass
