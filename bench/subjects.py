"""What the bench measures: no proxy, nginx, a tuned proxy of aiohttp, OpusMax, OpusMax without a promise, peers.

A subject is started anew for each round, alone on its core, and answers `POST /v1/messages` by asking the provider.
"""

import http.client
import json
import os
import secrets
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.machine import PROJECT, SUBJECT_CORE, BenchError, free_port, process

MODEL = "claude-haiku-4-5"
INPUT_TOKENS, CACHE_READ_TOKENS, JSON_OUTPUT_TOKENS = 12, 5, 34
"""What the provider counts for every request; of a stream, the output is the number of its deltas."""
ASK = {"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": "Four words, please."}]}
START_SECONDS = 120
MEMORY_FILES = Path("/dev/shm")  # noqa: S108 - a file system in memory is what is wanted
PEERS = Path(os.environ.get("OPUSMAX_BENCH_PEERS", "/tmp/opusmax-bench-peers"))  # noqa: S108 - outside the tree


@dataclass(slots=True)
class Counts:
    """What the load saw answered: whole answers, and the output tokens that the provider counted for them."""

    requests: int = 0
    output: int = 0


@dataclass(slots=True)
class Running:
    """A subject that answers."""

    address: str
    header: str = "x-api-key: none"
    process_id: int | None = None
    start_seconds: float = 0.0
    """From the start of the program to its first answer of the provider's."""
    counts: Counts = field(default_factory=Counts)
    environment: dict[str, str] = field(default_factory=dict)
    """Of its commands."""


Start = Callable[[str], AbstractContextManager[Running]]


@dataclass(frozen=True, slots=True)
class Subject:
    """A subject, and how it is started in front of a provider's address."""

    name: str
    title: str
    start: Start


@contextmanager
def _direct(provider: str) -> Iterator[Running]:
    yield Running(provider)


@contextmanager
def _nginx(provider: str) -> Iterator[Running]:
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        configuration = Path(folder, "nginx.conf")
        written = (PROJECT / "bench" / "nginx.conf").read_text()
        for name, value in {"PORT": str(port), "PROVIDER": provider, "FOLDER": folder}.items():
            written = written.replace(f"@{name}@", value)
        configuration.write_text(written)
        command: list[str | Path] = ["nginx", "-p", folder, "-c", configuration, "-e", "stderr"]
        with _started(command, Running(f"127.0.0.1:{port}")) as running:
            yield running


@contextmanager
def _aiohttp(provider: str) -> Iterator[Running]:
    port = free_port()
    command = [sys.executable, "-m", "bench.tuned_proxy", str(port), provider]
    with _started(command, Running(f"127.0.0.1:{port}")) as running:
        yield running


def _opusmax(*program: str, on: Path | None = None, is_recorded: bool = True) -> Start:
    """OpusMax with all of it on: a key, a budget and paces that are never reached, a ledger in a file (in a folder
    of its own `on` a file system)."""

    @contextmanager
    def start(provider: str) -> Iterator[Running]:
        with tempfile.TemporaryDirectory(dir=on) as folder:
            database = Path(folder, "opusmax.db")
            environment = {
                "PATH": os.environ["PATH"],
                "OPUSMAX_DATABASE": str(database),
                "ANTHROPIC_API_KEY": "the-operators-own-credential",
            }
            port = free_port()
            key = new_key(environment, "--budget", "900000M/5h")
            running = Running(f"127.0.0.1:{port}", f"x-api-key: {key}", environment=environment)
            command = [sys.executable, *program, "serve", "--listen", running.address]
            with _started([*command, "--anthropic-url", f"http://{provider}"], running, environment):
                yield running
            if is_recorded:
                _require_counted(database, running.counts)

    return start


def new_key(environment: dict[str, str], *budget: str) -> str:
    command = [sys.executable, "opusmax.py", "key", "create", f"bench {secrets.token_hex(4)}", "--json", *budget]
    limits = ["--requests-per-minute", "900M", "--tokens-per-minute", "900000M", "--concurrency", "100k"]
    made = subprocess.run([*command, *limits], cwd=PROJECT, env=environment, capture_output=True, check=False)
    if made.returncode != 0:
        raise BenchError(f"no key: {made.stderr.decode()}")
    return str(json.loads(made.stdout)["key"])


def _require_counted(database: Path, counts: Counts) -> None:
    """Figures of wrong answers are worth nothing: the ledger has each request, with the provider's own counts. The
    model of the first one may be unknown: the provider's list of names may still be on its way."""
    expected = (
        counts.requests,
        counts.requests * INPUT_TOKENS,
        counts.output,
        counts.requests * CACHE_READ_TOKENS,
        0,
        0,
    )
    with closing(sqlite3.connect(database)) as connection:
        (found,) = connection.execute(
            "SELECT count(*), sum(input), sum(output), sum(cache_read), sum(estimated),"
            " count(*) FILTER (WHERE status IS NOT 200 OR model NOT IN (?, 'unknown')) FROM request",
            (MODEL,),
        ).fetchall()
    if found != expected:
        raise BenchError(f"the ledger has {found}, the load saw {expected}")


@contextmanager
def _litellm(provider: str) -> Iterator[Running]:
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        configuration = Path(folder, "litellm.json")  # YAML is more than JSON
        parameters = {"model": f"anthropic/{MODEL}", "api_base": f"http://{provider}", "api_key": "none"}
        configuration.write_text(
            json.dumps(
                {
                    "model_list": [{"model_name": MODEL, "litellm_params": parameters}],
                    "general_settings": {"master_key": "sk-bench"},
                }
            )
        )
        command: list[str | Path] = [PEERS / "litellm" / "bin" / "litellm", "--config", configuration]
        running = Running(f"127.0.0.1:{port}", "x-api-key: sk-bench")
        environment = {"PATH": os.environ["PATH"], "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "true"}
        with _started([*command, "--host", "127.0.0.1", "--port", str(port)], running, environment):
            yield running


@contextmanager
def _started(
    command: Sequence[str | Path], running: Running, environment: dict[str, str] | None = None
) -> Iterator[Running]:
    began = time.monotonic()
    with process(command, SUBJECT_CORE, environment) as child:
        while not _answers(running):
            if child.poll() is not None or time.monotonic() - began > START_SECONDS:
                raise BenchError(f"{command} does not answer")
            time.sleep(0.002)
        running.start_seconds = time.monotonic() - began
        running.process_id = child.pid
        running.counts.requests += 1
        running.counts.output += JSON_OUTPUT_TOKENS
        yield running


def _answers(running: Running) -> bool:
    connection = http.client.HTTPConnection(running.address, timeout=START_SECONDS)
    name, _, value = running.header.partition(": ")
    headers = {name: value, "content-type": "application/json", "anthropic-version": "2023-06-01"}
    with closing(connection):
        try:
            connection.request("POST", "/v1/messages", json.dumps(ASK), headers)
            return connection.getresponse().status == 200
        except OSError:
            return False


DIRECT = Subject("direct", "direct", _direct)
NGINX = Subject("nginx", "nginx", _nginx)
AIOHTTP = Subject("aiohttp", "tuned aiohttp", _aiohttp)
OPUSMAX = Subject("opusmax", "**OpusMax**", _opusmax("opusmax.py"))
WITHOUT_PROMISES = (
    Subject("nothing-waits", "nothing waits for the disk", _opusmax("-m", "bench.variants", "nothing-waits")),
    Subject("no-ledger", "no ledger", _opusmax("-m", "bench.variants", "no-ledger", is_recorded=False)),
    Subject("in-memory", "the file in memory", _opusmax("opusmax.py", on=MEMORY_FILES)),
)
OF_ALL_KINDS = Subject(
    "of-all-kinds", "OpusMax, with requests of all kinds", _opusmax("opusmax.py", is_recorded=False)
)
LITELLM = Subject("litellm", "LiteLLM", _litellm)


def installed_peers() -> list[Subject]:
    return [LITELLM] if (PEERS / "litellm" / "bin" / "litellm").exists() else []
