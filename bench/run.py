"""The bench: all subjects in turn, round after round, in one run.

    python -m bench.run            everything, into bench/RESULTS.md and bench/results.svg; about 11 minutes
    python -m bench.run --short    nginx and OpusMax only, below a minute: fails on a gross regression of a ratio
    python -m bench.run --soak     memory over 100,000 requests, some two minutes: a part of everything

Only ratios of one run say something: a machine's own speed changes by a quarter from one run to the next.
"""

import argparse
import os
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench import machine, measures, results, soak, subjects
from bench.machine import BenchError
from bench.measures import Figures, Measure
from bench.results import Results
from bench.subjects import Subject

FOLDER = Path(__file__).parent
ROUNDS = 3
SEARCHED_ROUNDS = 1
"""The search for the most streams takes half a minute, so not every round has one."""
SHORT_ROUNDS = 3
NEEDED = {"nginx": "nginx (Debian: nginx-light)", "taskset": "taskset (Debian: util-linux)"}

METHOD = """\
- The subject runs alone on one core; the provider and the load, two programs of one thread each
  (`bench/harness`, Go), share another. "direct" is the load at the provider without a proxy: the harness' limit.
- Subjects take turns, round after round, each started anew: medians of the rounds, and their range in brackets.
  Figures vary with the machine; ratios of one run are what counts.
- OpusMax runs as its operator runs it: a key, a budget and paces (never reached), each request on disk before
  its last bytes leave. At the end of every round its ledger must hold each request with the provider's own
  counts; one wrong answer of any subject ends the bench.
- Loads are closed: a connection sends its next request when it has the whole answer. nginx: one worker, no access
  log, no buffering, kept connections. Tuned aiohttp: `bench/tuned_proxy.py`, which does nothing but pass on.
- Times are measured on one clock: the provider writes the moment of sending into each event. "Added" is the median
  less that of the direct call. Without a pause, the provider writes 16 events at once.
- Streams held: all open at once, found by halves; of 225 events each, those after 2 s count, 95 % of them in time.
- Memory is the proportional set size of all processes; streams with an event each second are open then.
- Memory over 100,000 requests: without what is mapped from files, after the requests so far. A third are refused,
  some fail at the provider, some clients leave in the middle. Its growth is the rise of a line through the points
  of the second half."""


def main() -> int:
    options = argparse.ArgumentParser(prog="bench")
    options.add_argument("--short", action="store_true", help="nginx and OpusMax only, below a minute")
    options.add_argument("--soak", action="store_true", help="memory over 100,000 requests only")
    options.add_argument("--rounds", type=int, default=ROUNDS, help=f"of the long run: {ROUNDS}")
    chosen = options.parse_args()
    _raise_file_limit()
    missing = [how for program, how in NEEDED.items() if shutil.which(program) is None]
    if missing or not machine.HARNESS.exists():
        sys.stderr.write(f"bench: install {', '.join(missing) or 'Go 1.19 or newer, and use make'}\n")
        return 2
    try:
        if chosen.short:
            return _short()
        return _soak() if chosen.soak else _full(chosen.rounds)
    except BenchError as error:
        sys.stderr.write(f"bench: {error}\n")
        return 1


def _full(rounds: int) -> int:
    about, began, found = machine.description(), time.monotonic(), Results()
    peers = subjects.installed_peers()
    compared = [subjects.DIRECT, subjects.NGINX, subjects.AIOHTTP, subjects.OPUSMAX]
    with _provider() as provider:
        for number in range(rounds):
            for subject in compared:
                _measure(found, subject, provider, _measures_of(subject, number))
            for subject in subjects.WITHOUT_PROMISES:
                _measure(found, subject, provider, [measures.saturation, measures.latency, measures.streams])
        for peer in peers:
            every = [measures.start, measures.saturation, measures.latency, measures.streams, measures.eager]
            _measure(found, peer, provider, [*every, measures.most, measures.idle])
            found.add(peer, {"installed_mb": machine.folder_megabytes(subjects.PEERS / peer.name)})
        points = _soaked(provider)
    found.add(subjects.OPUSMAX, {"installed_mb": machine.runtime_megabytes()})
    found.add(subjects.OPUSMAX, {"growth_mb": soak.growth_megabytes(points)})
    shown, promises = [*compared, *peers], [subjects.OPUSMAX, *subjects.WITHOUT_PROMISES]
    goals = results.goals(found, peers)
    (FOLDER / "results.svg").write_text(results.picture(found, shown))
    (FOLDER / "RESULTS.md").write_text(
        "# What OpusMax costs and carries\n\nWritten by `make bench`.\n\n![The figures as bars](results.svg)\n\n"
        f"{about}; {(time.monotonic() - began) / 60:.0f} minutes; rounds: {rounds}.\n\n"
        f"{results.table(found, shown)}\n\n## Goals\n\n{results.goal_table(goals)}\n\n"
        "## What the promises cost\n\nThe same program, with rows that are written but not waited for, without"
        f" a ledger, and with its file in memory.\n\n{results.table(found, promises)}\n\n"
        f"## Memory over 100,000 requests of all kinds\n\n{soak.table(points)}\n\n"
        f"## Method\n\n{METHOD}\n"
    )
    _say(results.table(found, shown))
    _say(results.goal_table(goals))
    return 0


def _measures_of(subject: Subject, number: int) -> list[Measure]:
    chosen: list[Measure] = [measures.saturation, measures.latency, measures.streams, measures.eager]
    if number < SEARCHED_ROUNDS:
        chosen.append(measures.most)
    if subject is not subjects.DIRECT:
        chosen.insert(0, measures.start)
        if number == 0:
            chosen.insert(1, measures.memory)
    return chosen


def _short() -> int:
    """Fails if a ratio is far from what it was: never for an absolute time, and never for waiting, which on a busy
    machine is for others. The bounds are about half as good as what is measured: move them when the program has
    become faster."""
    found = Results()
    with _provider() as provider:
        for _ in range(SHORT_ROUNDS):
            for subject in (subjects.NGINX, subjects.OPUSMAX):
                _measure(found, subject, provider, [_short_saturation, measures.paced])
    goals = [
        results.Goal(f"{title}, x nginx", found.ratio("opusmax", name, "nginx"), bound, is_least=is_least)
        for title, name, bound, is_least in (
            ("requests/s", "requests_per_second", 0.03, True),
            ("processor time of a request", "request_cpu_us", 40, False),
            ("processor time of an event", "event_cpu_us", 8, False),
        )
    ]
    _say(results.goal_table(goals))
    return 0 if all(goal.is_met for goal in goals) else 1


def _soak() -> int:
    with _provider() as provider:
        points = _soaked(provider)
    _say(soak.table(points))
    _say(f"growth in the second half: {soak.growth_megabytes(points):.1f} MB")
    return 0


def _soaked(provider: str) -> list[soak.Point]:
    with subjects.OF_ALL_KINDS.start(provider) as running:
        return soak.soak(running)


def _short_saturation(running: subjects.Running) -> Figures:
    return measures.saturation(running, seconds=1)


@contextmanager
def _provider() -> Iterator[str]:
    address = f"127.0.0.1:{machine.free_port()}"
    with machine.process([machine.HARNESS, "provider", address], machine.HARNESS_CORE) as child:
        if child.stdout is None or not child.stdout.readline():
            raise BenchError("the provider does not start")
        yield address


def _measure(found: Results, subject: Subject, provider: str, chosen: Sequence[Measure]) -> None:
    with subject.start(provider) as running:
        for measure in chosen:
            figures = measure(running)
            found.add(subject, figures)
            _say(f"{subject.name}: " + ", ".join(f"{name} {value:,.2f}" for name, value in figures.items()))


def _raise_file_limit() -> None:
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"  # where Debian keeps nginx
    sys.exit(main())
