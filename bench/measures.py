"""The measurements: each drives one load through a running subject and gives its figures.

    saturation   64 connections, small JSON             requests/s, processor time of a request
    latency      1 and 16 connections, small JSON       p50 and p99 of an answer
    streams      20 streams of events 20 ms apart       time to the first event, lateness of each
    paced        20 streams of events 20 ms apart       processor time of an event
    eager        20 streams without a pause             events/s
    most         the most streams of 20 ms events       whose p99 lateness is below 50 ms
    memory       idle, and with so many streams open    proportional set size

Lateness: from the provider's sending of an event to its coming to the load, both of which are on one clock.
"""

import json
import subprocess
import threading
from collections.abc import Callable, Mapping
from typing import Any

from bench.machine import HARNESS, HARNESS_CORE, BenchError, memory_megabytes, processor_seconds
from bench.subjects import JSON_OUTPUT_TOKENS, Running

Figures = dict[str, float]
"""Name -> value. Times are in milliseconds unless the name says otherwise."""
Measure = Callable[[Running], Figures]

LATE_MS = 50.0
EVENTS_PER_SECOND = 50
"""Of one stream of 20 ms events."""
IN_TIME = 0.95
"""So much of the events that are due must have come while they are measured."""
FEWEST, MOST, STEP = 5, 2_400, 1.08
OPEN_STREAMS = (1_000, 5_000)


def saturation(running: Running, seconds: float = 3) -> Figures:
    before = _processor_seconds(running)
    found = _load(running, "json", lanes=64, warm=0.5, seconds=seconds)
    used = _processor_seconds(running) - before
    return {"requests_per_second": found["per_second"], "request_cpu_us": used / found["requests"] * 1e6}


def latency(running: Running, seconds: float = 1.5) -> Figures:
    figures: Figures = {}
    for lanes in (1, 16):
        found = _load(running, "json", lanes=lanes, warm=0.3, seconds=seconds)
        figures |= {f"{lanes}_p50": found["whole"]["p50"], f"{lanes}_p99": found["whole"]["p99"]}
    return figures


def streams(running: Running, seconds: float = 4) -> Figures:
    found = _load(running, "streams", lanes=20, events=25, open=0.5, warm=0.7, seconds=seconds)
    return {
        "first_p50": found["first"]["p50"],
        "first_p99": found["first"]["p99"],
        "late_p50": found["late"]["p50"],
        "late_p99": found["late"]["p99"],
    }


def paced(running: Running) -> Figures:
    """The processor time of an event, of 20 streams: so few that a program which is ten times slower keeps up."""
    before = _processor_seconds(running)
    found = _load(running, "once", lanes=20, events=100, open=0.3, warm=0, seconds=2)
    return {"event_cpu_us": (_processor_seconds(running) - before) / found["events"] * 1e6}


def eager(running: Running, seconds: float = 2) -> Figures:
    found = _load(running, "streams", lanes=20, events=1_000, gap_us=0, warm=0.5, seconds=seconds)
    return {"events_per_second": found["events_per_second"]}


def most(running: Running) -> Figures:
    """Search by halves, in steps of 8 %; the fewest are taken as held."""
    candidates = [FEWEST]
    while candidates[-1] < MOST:
        candidates.append(max(candidates[-1] + 1, round(candidates[-1] * STEP)))
    held, not_held, event_cpu_us = 0, len(candidates), 0.0
    while not_held - held > 1:
        middle = (held + not_held) // 2
        before = _processor_seconds(running)
        found = _steady_streams(running, candidates[middle])
        if _is_in_time(found, candidates[middle]):
            held = middle
            event_cpu_us = (_processor_seconds(running) - before) / found["events"] * 1e6
        else:
            not_held = middle
    return {"streams_held": candidates[held], "event_cpu_us": event_cpu_us}


def _steady_streams(running: Running, lanes: int) -> Mapping[str, Any]:
    return _load(running, "once", lanes=lanes, events=225, open=1, warm=2, seconds=2.4)


def _is_in_time(found: Mapping[str, Any], lanes: int) -> bool:
    due = lanes * EVENTS_PER_SECOND * IN_TIME
    return bool(found["late"]["p99"] < LATE_MS and found["events_per_second"] >= due)


def memory(running: Running) -> Figures:
    figures = {"idle_mb": _memory(running)}
    for lanes in OPEN_STREAMS:
        opening = lanes / 500
        events = int(opening) + 5  # one each second: the first streams are still open when the last ones are
        found: list[float] = []
        looking = threading.Timer(opening + 2.5, lambda found=found: found.append(_memory(running)))
        looking.start()
        _load(running, "once", lanes=lanes, events=events, gap_us=1_000_000, open=opening, warm=0, seconds=1)
        looking.join()
        figures[f"{lanes}_mb"] = found[0]
        figures[f"{lanes}_stream_kb"] = (found[0] - figures["idle_mb"]) / lanes * 1_000
    return figures


def idle(running: Running) -> Figures:
    return {"idle_mb": _memory(running)}


def start(running: Running) -> Figures:
    return {"start_seconds": running.start_seconds}


def _load(running: Running, mode: str, **flags: float) -> Mapping[str, Any]:
    """One run of the load; what it saw is added to the subject's counts. Raises `BenchError` for a wrong answer."""
    found = load(running.address, running.header, mode, **flags)
    running.counts.requests += found["requests"]
    running.counts.output += found["events"] if mode != "json" else found["requests"] * JSON_OUTPUT_TOKENS
    return found


def load(address: str, header: str, mode: str, **flags: float) -> Mapping[str, Any]:
    """One run of the load. Raises `BenchError` for a wrong answer."""
    command = ["taskset", "-c", str(HARNESS_CORE), str(HARNESS), "load", mode]
    command += ["-target", address, "-header", header]
    for name, value in flags.items():
        command += [f"-{name.replace('_', '-')}", str(value)]
    done = subprocess.run(command, check=True, capture_output=True, timeout=180)
    found: dict[str, Any] = json.loads(done.stdout)
    if found["failures"]:
        raise BenchError(f"{found['failures']} of {found['requests']} answers were wrong: {done.stderr.decode()}")
    return found


def _processor_seconds(running: Running) -> float:
    return processor_seconds(running.process_id) if running.process_id is not None else 0.0


def _memory(running: Running) -> float:
    return memory_megabytes(running.process_id) if running.process_id is not None else 0.0
