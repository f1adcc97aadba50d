"""`/metrics`: figures for Prometheus, on a listener of its own that this machine alone reaches.

`METRICS` is the documented list, and the only place where a figure has its name. Labels are endpoints, statuses,
reasons and the operator's own names of upstreams: no key, no model and nothing that a client sent.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web
from prometheus_client import CollectorRegistry, Metric, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from gateway import logs
from gateway.core.records import Refusal
from gateway.core.settings import Address
from gateway.figures import COMMIT_BUCKETS, KINDS, Answers, CountedLedger
from gateway.handover import Handover
from gateway.responses import OWN_HEADERS

PATH = "/metrics"
UPSTREAM_EVENTS = "upstream."
"""How the events begin that tell of trouble with an upstream."""

Sample = tuple[str, Mapping[str, str], float]
"""What is added to the figure's name, its labels, its value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the figures are, as long as the server runs."""

    answers: Answers
    ledger: CountedLedger
    handover: Handover
    is_draining: Callable[[], bool]
    connections: Callable[[], int]


def _answers(sources: Sources) -> Iterator[Sample]:
    for (endpoint, status), count in sorted(sources.answers.counts.items()):
        yield "_total", {"endpoint": endpoint, "status": str(status)}, count


def _refusals(sources: Sources) -> Iterator[Sample]:
    for reason in Refusal:
        yield "_total", {"reason": reason.value}, sources.ledger.refusals[reason]


def _tokens(sources: Sources) -> Iterator[Sample]:
    for kind in KINDS:
        yield "_total", {"kind": kind}, getattr(sources.ledger, kind)


def _in_flight(sources: Sources) -> Iterator[Sample]:
    yield "", {}, sources.ledger.admitted - sources.ledger.settled


def _connections(sources: Sources) -> Iterator[Sample]:
    yield "", {}, sources.connections()


def _draining(sources: Sources) -> Iterator[Sample]:
    yield "", {}, sources.is_draining()


def _writable(sources: Sources) -> Iterator[Sample]:
    yield "", {}, sources.ledger.is_writable


def _queue(sources: Sources) -> Iterator[Sample]:
    yield "", {}, sources.ledger.queue


def _commits(sources: Sources) -> Iterator[Sample]:
    ledger, within = sources.ledger, 0
    for bound, count in zip((*map(str, COMMIT_BUCKETS), "+Inf"), ledger.commits, strict=True):
        within += count
        yield "_bucket", {"le": bound}, within
    yield "_count", {}, within
    yield "_sum", {}, ledger.commit_seconds


def _upstream_errors(_sources: Sources) -> Iterator[Sample]:
    for (event, upstream), count in sorted(logs.told.items()):
        if upstream and event.startswith(UPSTREAM_EVENTS):
            yield "_total", {"upstream": upstream, "error": event.removeprefix(UPSTREAM_EVENTS)}, count


def _events(_sources: Sources) -> Iterator[Sample]:
    for event in logs.Event:
        yield "_total", {"event": event.value}, sum(n for (told, _), n in logs.told.items() if told is event)


def _resting(sources: Sources) -> Iterator[Sample]:
    for rest in sources.handover.upstreams.resting():
        yield "", {"upstream": rest.upstream}, rest.credentials


Reader = Callable[[Sources], Iterable[Sample]]

METRICS: tuple[tuple[str, str, str, Reader], ...] = (
    ("opusmax_requests", "counter", "Answers by endpoint and status; 499: the client left.", _answers),
    ("opusmax_refusals", "counter", "Requests of known keys that were refused, by reason.", _refusals),
    ("opusmax_tokens", "counter", "Tokens of settled requests, by kind.", _tokens),
    ("opusmax_requests_in_flight", "gauge", "Admitted requests that are not settled yet.", _in_flight),
    ("opusmax_connections", "gauge", "Open connections of clients.", _connections),
    ("opusmax_draining", "gauge", "1: the server stops and admits nobody.", _draining),
    ("opusmax_ledger_writable", "gauge", "0: usage cannot be recorded, so nothing is relayed.", _writable),
    ("opusmax_ledger_queue_rows", "gauge", "Rows of the ledger that are on their way to the disk.", _queue),
    (
        "opusmax_ledger_commit_seconds",
        "histogram",
        "How long answers wait for their usage to be on disk, timed once a commit.",
        _commits,
    ),
    ("opusmax_upstream_errors", "counter", "Trouble with upstreams, by upstream and error.", _upstream_errors),
    ("opusmax_credentials_resting", "gauge", "Credentials of each upstream that are not used now.", _resting),
    ("opusmax_events", "counter", "Events of the log, also of lines that were dropped.", _events),
)
"""Each figure: name, type, what it says, and how it is read. Counters are written as `<name>_total`."""

PROCESS_METRICS: Mapping[str, str] = {
    "process_start_time_seconds": "When the process started, in seconds since 1970.",
    "process_cpu_seconds_total": "Time on the processors.",
    "process_resident_memory_bytes": "Memory in use.",
    "process_virtual_memory_bytes": "Memory in addresses.",
    "process_open_fds": "Open files and connections.",
    "process_max_fds": "How many of them the system allows.",
}
"""What prometheus-client itself tells of every process."""


class _Figures(Collector):
    """Reads the figures when they are asked for."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        for name, kind, text, read in METRICS:
            metric = Metric(name, text, kind)
            for suffix, labels, value in read(self._sources):
                metric.add_sample(name + suffix, dict(labels), value)
            yield metric


@asynccontextmanager
async def telling(address: Address, sources: Sources) -> AsyncIterator[str]:
    """Answer `GET /metrics` as long as the block lasts; gives the address of it."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(sources))
    ProcessCollector(registry=registry)

    async def answer(request: web.BaseRequest) -> web.Response:
        if (request.method, request.path) != ("GET", PATH):
            return web.Response(status=404, headers=OWN_HEADERS)
        headers = OWN_HEADERS | {"content-type": CONTENT_TYPE_PLAIN_0_0_4}
        return web.Response(body=generate_latest(registry), headers=headers)

    runner = web.ServerRunner(web.Server(answer, access_log=None), shutdown_timeout=0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, address.host, address.port)
        await site.start()
        port: int = runner.addresses[0][1]
        yield f"{Address(address.host, port).origin}{PATH}"
    finally:
        await runner.cleanup()
