"""What came out, over the rounds: the table, the goals and the picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from bench.measures import Figures
from bench.subjects import Subject

UNKNOWN = "–"


@dataclass(slots=True)
class Results:
    """The figures of every round, by subject and name."""

    found: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def add(self, subject: Subject, figures: Figures) -> None:
        for name, value in figures.items():
            self.found.setdefault((subject.name, name), []).append(value)

    def of(self, subject: str, name: str) -> float | None:
        """The median of the rounds; `None`: not measured."""
        values = self.found.get((subject, name))
        return median(values) if values else None

    def added(self, subject: str, name: str) -> float | None:
        """What a subject adds to the direct call, in milliseconds."""
        return self.difference(subject, name, "direct")

    def difference(self, subject: str, name: str, than: str) -> float | None:
        this, other = self.of(subject, name), self.of(than, name)
        return None if this is None or other is None else this - other

    def ratio(self, subject: str, name: str, to: str) -> float | None:
        this, other = self.of(subject, name), self.of(to, name)
        return None if this is None or not other else this / other


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table."""

    title: str
    name: str
    form: str
    is_added: bool = False
    """Shown as what is added to the direct call."""


ROWS = (
    Row("requests/s, 64 connections", "requests_per_second", ",.0f"),
    Row("processor time of a request, µs", "request_cpu_us", ",.0f"),
    Row("added to an answer, 1 connection, p50 ms", "1_p50", ".2f", is_added=True),
    Row("… p99 ms", "1_p99", ".2f", is_added=True),
    Row("added to an answer, 16 connections, p50 ms", "16_p50", ".2f", is_added=True),
    Row("… p99 ms", "16_p99", ".2f", is_added=True),
    Row("added to the first event, 20 streams, p50 ms", "first_p50", ".2f", is_added=True),
    Row("… p99 ms", "first_p99", ".2f", is_added=True),
    Row("added to each event, 20 streams, p50 ms", "late_p50", ".2f", is_added=True),
    Row("… p99 ms", "late_p99", ".2f", is_added=True),
    Row("events/s without a pause", "events_per_second", ",.0f"),
    Row("20 ms streams held, p99 lateness < 50 ms", "streams_held", ",.0f"),
    Row("processor time of an event at that load, µs", "event_cpu_us", ",.0f"),
    Row("memory, idle, MB", "idle_mb", ",.0f"),
    Row("… with 1,000 streams open, MB", "1000_mb", ",.0f"),
    Row("… with 5,000 streams open, MB", "5000_mb", ",.0f"),
    Row("memory of an open stream (of 5,000), kB", "5000_stream_kb", ",.0f"),
    Row("start to first answer, s", "start_seconds", ".2f"),
    Row("installed size, MB", "installed_mb", ",.0f"),
)


def table(results: Results, subjects: Sequence[Subject]) -> str:
    """All figures: the median of the rounds, and the range in brackets."""
    lines = [_line(["", *(subject.title for subject in subjects)]), _line(["---", *["---:"] * len(subjects)])]
    for row in ROWS:
        cells = [_cell(results, subject.name, row) for subject in subjects]
        if set(cells) != {UNKNOWN}:
            lines.append(_line([row.title, *cells]))
    return "\n".join(lines)


def _cell(results: Results, subject: str, row: Row) -> str:
    values = results.found.get((subject, row.name))
    if not values:
        return UNKNOWN
    base = (results.of("direct", row.name) or 0.0) if row.is_added and subject != "direct" else 0.0
    shown = [value - base for value in values]
    middle, least, most = (format(value, row.form) for value in (median(shown), min(shown), max(shown)))
    return middle if least == most else f"{middle} [{least}–{most}]"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure should be, in the same run."""

    title: str
    value: float | None
    bound: float
    form: str = ".2f"
    is_least: bool = False

    @property
    def is_met(self) -> bool:
        return self.value is not None and (self.value >= self.bound if self.is_least else self.value <= self.bound)


def goals(results: Results, peers: Sequence[Subject]) -> list[Goal]:
    us, promise_free = "opusmax", "nothing-waits"
    held = results.ratio(us, "requests_per_second", promise_free)
    waited = results.difference(us, "1_p50", promise_free)
    found = [
        Goal("requests/s, x nginx", results.ratio(us, "requests_per_second", "nginx"), 0.15, is_least=True),
        Goal("requests/s, x tuned aiohttp", results.ratio(us, "requests_per_second", "aiohttp"), 2, is_least=True),
        Goal("added to the first event, p50 ms", results.added(us, "first_p50"), 0.8),
        Goal("added to each event, p50 ms", results.added(us, "late_p50"), 0.25),
        Goal("20 ms streams held, x nginx", results.ratio(us, "streams_held", "nginx"), 0.5, is_least=True),
        Goal("idle, MB", results.of(us, "idle_mb"), 50, ".0f"),
        Goal("memory of an open stream, kB", results.of(us, "5000_stream_kb"), 20, ".0f"),
        Goal("memory, growth over requests 50,000 to 100,000, MB", results.of(us, "growth_mb"), 2, ".1f"),
        Goal("start to first answer, s", results.of(us, "start_seconds"), 0.8),
        Goal("requests/s with the held last bytes, x without", held, 0.9, is_least=True),
        Goal("… what they add, p50 ms, 1 connection", waited, 1),
    ]
    for peer in peers:
        ratio = results.ratio(us, "requests_per_second", peer.name)
        found.append(Goal(f"requests/s, x {peer.title}", ratio, 10, ".0f", is_least=True))
    return found


def goal_table(found: Sequence[Goal]) -> str:
    lines = [_line(["goal", "", "measured", ""]), _line(["---", "---:", "---:", "---"])]
    for goal in found:
        bound = f"{'≥' if goal.is_least else '≤'} {goal.bound:g}"
        value = UNKNOWN if goal.value is None else format(goal.value, goal.form)
        lines.append(_line([goal.title, bound, value, "met" if goal.is_met else "**missed**"]))
    return "\n".join(lines)


def picture(results: Results, subjects: Sequence[Subject]) -> str:
    """Bars of the three figures that users feel, as SVG; it reads in light and dark."""
    parts, top = [], 10
    for title, name, form, is_added in (
        ("requests/s on one core, 64 connections (more is better)", "requests_per_second", ",.0f", False),
        ("20 ms streams held on one core (more is better)", "streams_held", ",.0f", False),
        ("added to the first event, p50 ms (less is better)", "first_p50", ".2f", True),
    ):
        values = {
            subject.title.strip("*"): (results.added if is_added else results.of)(subject.name, name)
            for subject in subjects
        }
        parts.append(f'<text x="10" y="{top + 14}" font-weight="bold">{title}</text>')
        parts.append(_bars({label: value for label, value in values.items() if value is not None}, form, top + 24))
        top += 44 + 22 * len(values)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 {top}">\n'
        "<style>text { font: 13px sans-serif; fill: #24292f }"
        " @media (prefers-color-scheme: dark) { text { fill: #e6edf3 } }</style>\n"
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _bars(values: Mapping[str, float], form: str, top: int) -> str:
    largest = max(values.values(), default=0) or 1
    bars = []
    for number, (label, value) in enumerate(values.items()):
        y, width = top + 22 * number, max(1, round(460 * value / largest))
        color = "#1a7f64" if label == "OpusMax" else "#8c959f"
        bars.append(f'<text x="130" y="{y + 13}" text-anchor="end">{label}</text>')
        bars.append(f'<rect x="140" y="{y}" width="{width}" height="16" fill="{color}"/>')
        bars.append(f'<text x="{146 + width}" y="{y + 13}">{value:{form}}</text>')
    return "\n".join(bars)
