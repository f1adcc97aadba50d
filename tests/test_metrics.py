"""`/metrics`: off unless asked for, on this machine only, and exactly the documented figures, without a word of
anybody's."""

import asyncio
import re
import signal
import sys
from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from gateway.core.records import Key
from gateway.core.usage import Usage
from gateway.metrics import METRICS, PROCESS_METRICS
from gateway.simulator import Script, Simulator
from tests.harness import Database, ask
from tests.test_server_process import CANARY, Server, run, server, status_of

ROOT = Path(__file__).parent.parent
FLAGS = ("--metrics-listen", "127.0.0.1:0")
Figures = dict[str, dict[tuple[tuple[str, str], ...], float]]
"""The samples of each figure, by their labels."""


async def url_of(running: Server) -> str:
    return await running.hear(rb"figures at (http://127\.0\.0\.1:\d+/metrics)")


async def scrape(url: str) -> Figures:
    async with aiohttp.ClientSession() as http, http.get(url) as answer:
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        text = await answer.text()
    figures: Figures = {}
    for family in text_string_to_metric_families(text):
        figures.setdefault(family.name, {})
        for sample in family.samples:
            figures.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return figures


def value(figures: Figures, name: str, **labels: str) -> float:
    return figures[name].get(tuple(sorted(labels.items())), 0)


async def test_without_the_setting_there_are_no_figures_and_their_library_is_not_loaded(
    provider: Simulator, database: Database
) -> None:
    async with server(provider, database.path) as running:
        async with aiohttp.ClientSession(running.origin) as http, http.get("/metrics") as answer:
            assert answer.status == 404
        assert await running.stop() == 0
    assert b"figures at" not in running.errors
    code = "import sys, gateway.server; print('gateway.figures' in sys.modules, 'prometheus_client' in sys.modules)"
    command = (sys.executable, "-c", code)
    child = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    assert (await child.communicate())[0].split() == [b"True", b"False"]


async def test_an_address_that_is_taken_is_named(provider: Simulator, database: Database) -> None:
    taken = provider.origin.removeprefix("http://")
    code, _, errors = await run(
        *("serve", "--listen", "127.0.0.1:0", "--metrics-listen", taken),
        database=database.path,
        ANTHROPIC_API_KEY="a",
    )
    assert code == 1
    assert errors.splitlines()[-1].startswith("opusmax: cannot listen on ")
    assert taken in errors


async def test_the_list_is_the_documented_one(
    provider: Simulator, database: Database, alice: tuple[str, Key]
) -> None:
    async with server(provider, database.path, *FLAGS) as running:
        url = await url_of(running)
        assert await status_of(running.origin, alice[0]) == 200
        figures = await scrape(url)
    documented = {name for name, _, _, _ in METRICS} | {name.removesuffix("_total") for name in PROCESS_METRICS}
    samples = {name.removesuffix("_total").removesuffix("_bucket") for name in figures}
    assert {name for name in samples if not name.endswith(("_count", "_sum"))} == documented


async def test_what_clients_do_is_counted(provider: Simulator, database: Database, alice: tuple[str, Key]) -> None:
    provider.next(
        Script(usage=Usage(input=70, output=5, cache_write=3, cache_read=20)), Script(status=529), Script()
    )
    small, _ = await database.create_key("bob", budgets=[(50, None)])
    async with server(provider, database.path, *FLAGS) as running:
        url = await url_of(running)
        assert [await status_of(running.origin, alice[0]) for _ in range(2)] == [200, 529]
        assert await status_of(running.origin, small) == 400
        async with aiohttp.ClientSession(running.origin, headers={"x-api-key": alice[0]}) as http:
            for path in ("/models", "/v1/models/claude-x", "/v1/nothing", "/usage"):
                async with http.get(path) as answer:
                    await answer.read()
        figures = await scrape(url)
    for endpoint, status, count in [
        ("/v1/messages", 200, 1),
        ("/v1/messages", 529, 1),
        ("/v1/messages", 400, 1),
        ("/v1/models", 200, 1),
        ("/v1/models/{model_id}", 404, 1),
        ("other", 404, 1),
        ("other", 200, 1),
    ]:
        told = value(figures, "opusmax_requests_total", endpoint=endpoint, status=str(status))
        assert told == count, (endpoint, status)
    assert value(figures, "opusmax_refusals_total", reason="size") == 1
    assert value(figures, "opusmax_requests_in_flight") == 0
    tokens = [value(figures, "opusmax_tokens_total", kind=kind) for kind in ("input", "output", "cache_write")]
    assert tokens == [70, 5, 3]
    assert value(figures, "opusmax_tokens_total", kind="cache_read") == 20
    assert value(figures, "opusmax_ledger_commit_seconds_count") == 2
    assert value(figures, "opusmax_ledger_commit_seconds_bucket", le="+Inf") == 2
    assert value(figures, "opusmax_ledger_commit_seconds_sum") > 0


async def test_what_runs_now_is_told_and_a_drain_too(
    provider: Simulator, database: Database, alice: tuple[str, Key]
) -> None:
    provider.script = Script(output_tokens=60, events=60, pause_seconds=0.05)
    async with (
        server(provider, database.path, *FLAGS) as running,
        aiohttp.ClientSession(running.origin, headers={"x-api-key": alice[0]}) as http,
    ):
        url = await url_of(running)
        idle = await scrape(url)
        async with http.post("/v1/messages", json=ask(stream=True)) as stream:
            await stream.content.readany()
            busy = await scrape(url)
            running.process.send_signal(signal.SIGTERM)
            await running.hear(b"server.draining")
            draining = await scrape(url)
            assert b"message_stop" in await stream.read()
        assert await running.stop() == 0
    names = ("opusmax_requests_in_flight", "opusmax_connections", "opusmax_draining", "opusmax_ledger_writable")
    assert [value(idle, name) for name in names] == [0, 0, 0, 1]
    assert [value(busy, name) for name in names] == [1, 1, 0, 1]
    assert [value(draining, name) for name in names] == [1, 1, 1, 1]


async def test_a_ledger_that_cannot_be_written_shows(
    provider: Simulator, database: Database, alice: tuple[str, Key]
) -> None:
    del alice
    async with server(provider, database.path, *FLAGS) as running:
        url = await url_of(running)
        database.query("ALTER TABLE key RENAME TO elsewhere")
        await running.hear(b"ledger.failing")
        figures = await scrape(url)
    assert value(figures, "opusmax_ledger_writable") == 0
    assert value(figures, "opusmax_events_total", event="ledger.failing") == 1


async def test_trouble_with_an_upstream_is_told_under_its_configured_name(
    provider: Simulator, database: Database, alice: tuple[str, Key], tmp_path: Path
) -> None:
    config = tmp_path / "opusmax.toml"
    table = f'name = "claude"\nprotocol = "anthropic"\nurl = "{provider.origin}"'
    config.write_text(f'[[upstream]]\n{table}\ncredentials = ["REVOKED_KEY", "ANTHROPIC_API_KEY"]\n')
    async with server(provider, database.path, *FLAGS, "--config", str(config), REVOKED_KEY="revoked") as running:
        url = await url_of(running)
        assert [await status_of(running.origin, alice[0]) for _ in range(2)] == [200, 200]
        figures = await scrape(url)
    errors = figures["opusmax_upstream_errors_total"]
    assert errors == {(("error", "credential_refused"), ("upstream", "claude")): 1}
    assert value(figures, "opusmax_credentials_resting", upstream="claude") == 1


async def test_nothing_that_a_client_sent_and_nobodys_key_is_among_the_figures(
    provider: Simulator, database: Database
) -> None:
    text, key = await database.create_key("erin-the-owner")
    headers = {"x-api-key": text, "user-agent": CANARY, "cookie": CANARY}
    async with server(provider, database.path, *FLAGS) as running:
        url = await url_of(running)
        async with aiohttp.ClientSession(running.origin, headers=headers) as http:
            for path in ("/v1/messages", f"/v1/models/{CANARY}", f"/{CANARY}", f"/v1/{CANARY}?{CANARY}={CANARY}"):
                for method in ("GET", "POST", CANARY.upper()):
                    async with http.request(method, path, json=ask(model=CANARY, system=CANARY)) as answer:
                        await answer.read()
        async with aiohttp.ClientSession() as http, http.get(f"{url}?{CANARY}", headers=headers) as answer:
            told = await answer.text()
        for path in (f"/{CANARY}", f"/metrics/{CANARY}", "/"):
            async with aiohttp.ClientSession() as http, http.get(url.replace("/metrics", path)) as answer:
                assert (answer.status, await answer.text()) == (404, "")
    assert "opusmax_requests_total" in told
    key_id = text.split("-")[3]
    for secret in (CANARY, CANARY.upper(), text, key_id, "erin", str(key.row)):
        assert secret not in told


def test_the_table_of_the_documentation_names_each_figure_and_no_other() -> None:
    text = (ROOT / "deploy" / "README.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `((?:opusmax|process)_\w+)` \| (\w+) ", text, re.MULTILINE)
    own = [(f"{name}_total" if kind == "counter" else name, kind) for name, kind, *_ in METRICS]
    assert told[: len(own)] == own
    assert [name for name, _ in told[len(own) :]] == list(PROCESS_METRICS)
