"""P1: a name of a model is kept only if somebody else than a client wrote it: of 1,000 hostile names, none.

Against a provider that knows its models, one that takes any name, and some whose list of models is odd.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from random import Random

import aiohttp
import pytest

from gateway.core.records import Key
from gateway.simulator import MODELS, Script, Simulator
from gateway.simulator.sending import Received
from prove.conftest import Figure
from prove.load import client
from tests.harness import OPERATOR_CREDENTIAL, Database, ask, until
from tests.test_json_corpus import HOSTILE_MODELS
from tests.test_server_process import server

NAMES = 1_000
CONFIGURED = ("my-own-model", "claude-next")
KNOWN = {*MODELS, *CONFIGURED, "claude-haiku-4-5", "unknown"}
"""Written down a second time: the provider's list, the same without a date, the configuration."""
WORDS = (
    *("4111111111111111", "hunter2", "sk-live-51HvTq", "ghp_16C7e42F292c6912E7", "ada@lovelace.example"),
    *("+44 20 7946 0958", "<img src=x onerror=alert(1)>", "' OR 1=1 --", "=HYPERLINK(1)", "../../etc/passwd"),
    *("%s%n", "${7*7}", "\u202e", "\u0000", "\U0001f600", "\u4e2d\u6587", "\u0661", "\ufeff", "\t", "\r\n", "\\"),
    *('"', "*", "?", "[a-z]*", "claude-*", "", " "),
)
ODD_LISTS = {
    "100,000 entries": [{"id": f"listed-{number}"} for number in range(100_000)],
    "huge names": [{"id": "h" * 10**6}, {"id": "h" * 257}],
    "control characters": [{"id": "a\0b\x1b[31m"}, {"id": "a\r\nb"}],
    "not names": [{"id": 5}, {"id": None}, {"id": ["claude-opus-5-5"]}],
    "no ids": [{"name": "claude-opus-5-5"}],
    "empty": [],
}


def hostile_names(seed: int) -> Iterator[str]:
    """Secrets, markup and odd letters; alone, and around or inside of names that are known."""
    random = Random(seed)
    known = sorted(KNOWN - {"unknown"})
    yield from HOSTILE_MODELS
    while True:
        word, name = random.choice(WORDS), random.choice(known)
        place = random.randrange(len(name))
        made = random.choice(
            [
                word + str(random.random()),
                name + word + random.choice("-.:@/ "),
                word + "/" + name,
                name[:place] + word + name[place:] + "x",
                name[:place] + name[place:].swapcase(),
                f"{name}-20{random.randrange(10**6):06}",
                f"{name}-{random.randrange(10**9):09}",
                name[:place],
                name.replace("-", "\u2010"),
                name + "\u0301",
            ]
        )
        if made and len(made) <= 256 and made not in KNOWN:
            yield made


def some_names(count: int, seed: int) -> list[str]:
    names: dict[str, None] = {}
    for name in hostile_names(seed):
        names[name] = None
        if len(names) == count:
            break
    return list(names)


async def ask_all(http: aiohttp.ClientSession, key: str, names: Sequence[str]) -> Counter[int]:
    statuses: Counter[int] = Counter()
    for number, name in enumerate(names):
        body = ask(model=name, stream=bool(number % 2))
        async with http.post("/v1/messages", json=body, headers={"x-api-key": key}) as answer:
            await answer.read()
            statuses[answer.status] += 1
    return statuses


def kept_names(database: Database) -> set[str]:
    """All that any table that has a model keeps."""
    return {
        name
        for table in ("request", "usage_by_hour")
        for (name,) in database.query(f"SELECT DISTINCT model FROM {table}")
    }


async def until_listed(provider: Simulator) -> None:
    """The server has asked for the list of models, and has read it."""
    await until(lambda: any(received.path.startswith("/v1/models") for received in provider.received))
    await until(lambda: all(received.ended.is_set() for received in provider.received))


@pytest.mark.parametrize("accept_any_model", [False, True], ids=["knows its models", "takes any name"])
async def test_hostile_names_are_not_kept(
    database: Database, alice: tuple[str, Key], figure: Figure, accept_any_model: bool
) -> None:
    names = some_names(NAMES, seed=5)
    async with (
        Simulator(credentials={OPERATOR_CREDENTIAL}, accept_any_model=accept_any_model) as provider,
        server(provider, database.path, OPUSMAX_MODELS=" ".join(CONFIGURED)) as running,
        client(running.origin) as http,
    ):
        await until_listed(provider)
        statuses = await ask_all(http, alice[0], [*names, *sorted(KNOWN)])
        assert await running.stop() == 0
    kept = kept_names(database)
    assert kept <= KNOWN
    assert kept >= {*MODELS, "claude-haiku-4-5", "unknown"}
    assert database.query("SELECT count(*) FROM request") == [(len(provider.messages()),)]
    assert statuses[200 if accept_any_model else 404] >= NAMES - len(HOSTILE_MODELS)
    figure(
        "P1",
        f"hostile names of models kept, by a provider that {'takes any' if accept_any_model else 'knows its own'}:"
        f" 0 of {NAMES:,}; the ledger has {len(kept)} names, all known, `unknown` among them",
    )


@pytest.mark.parametrize("kind", ODD_LISTS)
async def test_an_odd_list_of_models_lets_no_client_write(
    database: Database, alice: tuple[str, Key], kind: str, figure: Figure
) -> None:
    body = json.dumps({"data": ODD_LISTS[kind], "has_more": False}).encode()
    hostile = [*some_names(100, seed=6), "h" * 256, "listed-100000", "5", "None", "a\0", "a\0b"]
    listed = [f"listed-{number}" for number in (0, 5, 99)] if kind == "100,000 entries" else []

    def choose(received: Received) -> Script | None:
        return Script(body=body) if received.path.startswith("/v1/models") else None

    async with Simulator(credentials={OPERATOR_CREDENTIAL}, accept_any_model=True) as provider:
        provider.choose = choose
        async with server(provider, database.path) as running, client(running.origin) as http:
            await until_listed(provider)
            assert await ask_all(http, alice[0], [*hostile, *listed]) == {200: len(hostile) + len(listed)}
            assert await running.stop() == 0
    assert kept_names(database) == {*listed, "unknown"}
    figure("P1", f"hostile names kept beside a provider's odd list of models ({kind}): 0 of {len(hostile)}")
