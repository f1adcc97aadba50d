"""Bars of the tokens that counted, hour by hour or day by day, stacked by model: the figures of an inline SVG.

A chart is a fixed plot of whole units that the stylesheet stretches to its place. All bars of a model are one path,
so a month of five models is five elements. What no eye can tell from the bars is in the table beside them: the same
figures, to the token.

A model has one place in the stack, one pattern and one colour in every chart of a page; so it is told apart without
colours as well. The axis ends at a round figure whose half is round, too: 40k for 37,000 tokens.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from gateway.core.account import ModelUse
from gateway.core.amounts import DAY_MS, HOUR_MS, from_ms
from gateway.core.usage_tables import HISTORY_DAYS, Column, Table, show_count, show_round

WIDTH = 480
HEIGHT = 200
PLOT_TOP = 20
PLOT_BOTTOM = 170
LABEL_LINE = 192
"""Where the words under the bars stand."""
EDGE = 30
"""A word whose middle is nearer to an edge than this begins or ends there, or it would be cut."""
NAMED_MODELS = 4
"""The models that used most have a pattern of their own, as many as can be told apart; the rest share the last."""

HOURS = 24

_AXIS_TOPS = (10, 12, 16, 20, 24, 30, 40, 50, 60, 80)
"""Times a power of ten: round, and with a round half."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """A row of equal stretches of time, and how they are called."""

    name: str
    title: str
    heading: str
    """Of the table's first column."""
    caption: str
    began: int
    """The time at which the first stretch began."""
    step_ms: int
    count: int
    row_label: str
    """As `strftime` takes it; here and below."""
    axis_label: str
    is_labelled: Callable[[int], bool]
    """Whether the stretch that begins at a time has a word under its bar."""

    @property
    def starts(self) -> range:
        return range(self.began, self.began + self.count * self.step_ms, self.step_ms)


@dataclass(frozen=True, slots=True)
class Series:
    """The bars of one model."""

    pattern: int
    """Its number among the patterns of the page."""
    label: str
    total: str
    path: str
    """All its bars, in the words of SVG's `path`."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line across the plot, and what it stands for."""

    y: int
    text: str


@dataclass(frozen=True, slots=True)
class Word:
    """A word under the bars; `anchor` is SVG's."""

    x: int
    anchor: str
    text: str


@dataclass(frozen=True, slots=True)
class Stretch:
    """The place of one bar, and what a pointer that rests on it is told."""

    x: int
    width: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A chart with the table of its figures."""

    name: str
    title: str
    series: tuple[Series, ...]
    """From the bottom of the stack to its top; empty: nothing counted."""
    lines: tuple[Line, ...]
    words: tuple[Word, ...]
    stretches: tuple[Stretch, ...]
    table: Table


def last_hours(now_ms: int) -> Scale:
    """The hour that runs, and the whole ones before it."""
    return Scale(
        name="hours",
        title=f"Tokens counted in each of the last {HOURS} hours",
        heading="Hour (UTC)",
        caption="By hour, newest first; hours without a request are left out",
        began=now_ms - now_ms % HOUR_MS - (HOURS - 1) * HOUR_MS,
        step_ms=HOUR_MS,
        count=HOURS,
        row_label="%m-%d %H:00",
        axis_label="%H:00",
        is_labelled=lambda began: began // HOUR_MS % 6 == 0,
    )


def last_days(now_ms: int) -> Scale:
    """The day that runs, and the whole ones before it."""
    return Scale(
        name="days",
        title=f"Tokens counted on each of the last {HISTORY_DAYS} days",
        heading="Day (UTC)",
        caption="By day, newest first; days without a request are left out",
        began=now_ms - now_ms % DAY_MS - (HISTORY_DAYS - 1) * DAY_MS,
        step_ms=DAY_MS,
        count=HISTORY_DAYS,
        row_label="%Y-%m-%d",
        axis_label="%b %-d",
        is_labelled=lambda began: (now_ms // DAY_MS - began // DAY_MS) % 7 == 0,
    )


def largest_models(uses: Iterable[ModelUse]) -> tuple[str, ...]:
    """The models that have a place of their own in the charts: those that used most, the largest first."""
    totals: dict[str, int] = {}
    for use in uses:
        totals[use.model] = totals.get(use.model, 0) + use.charge
    counted = sorted((model for model in totals if totals[model]), key=lambda model: (-totals[model], model))
    return tuple(counted[:NAMED_MODELS])


def bar_chart(scale: Scale, uses: Iterable[ModelUse], models: Sequence[str]) -> Chart:
    """`models` have a place of their own; what other models used is added up on top of them."""
    stacks, requests = _stacks(scale, uses, models)
    labels = [*models, "all other models"]
    shown = [place for place in range(len(labels)) if any(stack[place] for stack in stacks)]
    top = axis_top(max(map(sum, stacks)))
    return Chart(
        name=scale.name,
        title=scale.title,
        series=tuple(
            Series(
                place if place < len(models) else NAMED_MODELS,
                labels[place],
                show_count(sum(stack[place] for stack in stacks)),
                _path(stacks, place, top),
            )
            for place in shown
        ),
        lines=tuple(Line(_height(tokens, top), show_round(tokens)) for tokens in (top, top // 2)),
        words=_words(scale),
        stretches=_stretches(scale, stacks),
        table=_table(scale, stacks, requests, [(place, labels[place]) for place in shown]),
    )


def axis_top(most: int) -> int:
    """The smallest round figure that is not below `most`, with a round half."""
    unit = 1
    while _AXIS_TOPS[-1] * unit < most:
        unit *= 10
    return next(top * unit for top in _AXIS_TOPS if top * unit >= most)


def _stacks(scale: Scale, uses: Iterable[ModelUse], models: Sequence[str]) -> tuple[list[list[int]], list[int]]:
    """For each stretch of time: the tokens by place in the stack, and the number of requests."""
    stacks = [[0] * (len(models) + 1) for _ in scale.starts]
    requests = [0] * scale.count
    places = {model: place for place, model in enumerate(models)}
    for use in uses:
        number = (use.began - scale.began) // scale.step_ms
        if 0 <= number < scale.count:
            stacks[number][places.get(use.model, len(models))] += use.charge
            requests[number] += use.requests
    return stacks, requests


def _height(tokens: int, top: int) -> int:
    """Where so many tokens end in the plot, which grows upwards."""
    return PLOT_BOTTOM - tokens * (PLOT_BOTTOM - PLOT_TOP) // top


def _path(stacks: Sequence[Sequence[int]], place: int, top: int) -> str:
    """A rectangle for each bar of one place in the stack. What used anything at all is at least one unit high."""
    step = WIDTH // len(stacks)
    gap = step // 4
    pieces = []
    for number, stack in enumerate(stacks):
        if stack[place]:
            foot, head = (_height(sum(stack[:end]), top) for end in (place, place + 1))
            width = step - gap
            pieces.append(f"M{number * step + gap // 2} {foot}h{width}v-{max(1, foot - head)}h-{width}z")
    return "".join(pieces)


def _words(scale: Scale) -> tuple[Word, ...]:
    step = WIDTH // scale.count
    words = []
    for number, began in enumerate(scale.starts):
        if scale.is_labelled(began):
            middle = number * step + step // 2
            anchor = "start" if middle < EDGE else "end" if middle > WIDTH - EDGE else "middle"
            x = {"start": 0, "middle": middle, "end": WIDTH}[anchor]
            words.append(Word(x, anchor, from_ms(began).strftime(scale.axis_label)))
    return tuple(words)


def _stretches(scale: Scale, stacks: Sequence[Sequence[int]]) -> tuple[Stretch, ...]:
    step = WIDTH // scale.count
    return tuple(
        Stretch(number * step, step, f"{from_ms(began).strftime(scale.row_label)}: {show_count(sum(stack))}")
        for number, (began, stack) in enumerate(zip(scale.starts, stacks, strict=True))
        if any(stack)
    )


def _table(
    scale: Scale, stacks: Sequence[Sequence[int]], requests: Sequence[int], places: Sequence[tuple[int, str]]
) -> Table:
    """Newest first; a stretch without requests has no row."""
    rows = [
        (
            from_ms(began).strftime(scale.row_label),
            show_count(count),
            show_count(sum(stack)),
            *(show_count(stack[place]) for place, _ in places),
        )
        for began, stack, count in zip(scale.starts, stacks, requests, strict=True)
        if count
    ]
    headings = ("Requests", "Counted", *(label for _, label in places))
    return Table(
        name=f"{scale.name}-table",
        caption=scale.caption,
        columns=(Column(scale.heading), *(Column(heading, True) for heading in headings)),
        rows=tuple(reversed(rows)),
        empty="No requests in this time.",
    )
