"""The report's charts as inline SVG, from numbers and fixed words alone: no text of a suite or a prompt gets in here.

Colours are classes of the page's style sheet. Whatever a colour says, a shape, a dash or a letter says as well.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from markupsafe import Markup

from eval.report import numbers as printed
from eval.stats.intervals import Interval

LEFT, TOP, BOTTOM, FOOT = 46.0, 26.0, 286.0, 52.0  # of the data's area, in SVG units; FOOT is for what stands below it
COLUMN = 17.0  # width of an interval beside a line chart
QUARTERS = (0, 0.25, 0.5, 0.75, 1)

COLOURS = 6  # of the style sheet; letters tell further lines apart
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a chart: shares after some number of pictures or steps."""

    letter: str
    points: Sequence[tuple[float, Interval]]
    control: bool = False
    mark: float | None = None  # where along x a ring is drawn


@dataclass(frozen=True)
class Frame:
    """Where data lie on the paper: x from 0 to `most`, y from 0 to 1."""

    right: float
    most: float

    def x(self, value: float) -> float:
        return LEFT + value / self.most * (self.right - LEFT)

    def y(self, share: float) -> float:
        return BOTTOM - share * (BOTTOM - TOP)

    def axes(self, along: str, up: str, percent: bool = False) -> str:
        """Grid lines, ticks and the names of both axes."""
        parts = []
        for share in QUARTERS:
            y = self.y(share)
            parts.append(
                f'<path class="grid" d="M{LEFT:.1f} {y:.1f}H{self.right:.1f}"/>{label(LEFT - 7, y + 4, f"{100 * share:g}", "end")}'
            )
        for tick in QUARTERS if percent else ticks(self.most):
            words = f"{100 * tick:g}" if percent else f"{tick:g}"
            parts.append(f'<path class="grid" d="M{self.x(tick):.1f} {BOTTOM:.1f}v5"/>{label(self.x(tick), BOTTOM + 19, words)}')
        parts.append(label((LEFT + self.right) / 2, BOTTOM + 40, along))
        parts.append(label(2, TOP - 12, up, "start"))
        return "".join(parts)


def scatter(points: Mapping[str, tuple[Interval, Interval]], gone: float | None, kept: float | None) -> Markup:
    """Erased (x) against kept (y), a cross of both intervals for every model.

    Args:
        points: by model: (erased, kept).
        gone, kept: thresholds; None where none is asked for.
    """
    frame = Frame(right=420, most=1)
    parts = [frame.axes("erased: UA, %", "kept: mean of IRA and CRA, %", percent=True)]
    parts.append(label(frame.x(0.97), frame.y(0.04), "all gone, good and bad", "end", "corner"))
    parts.append(label(frame.x(0.03), frame.y(0.04), "only harm done", "start", "corner"))
    if gone is not None:
        parts.append(
            f'<path class="gate" d="M{frame.x(gone):.1f} {TOP}V{BOTTOM}"><title>asked for: at least {100 * gone:g} %</title></path>'
        )
    if kept is not None:
        parts.append(
            f'<path class="gate" d="M{LEFT} {frame.y(kept):.1f}H{frame.right}"><title>asked for: at least {100 * kept:.1f} %</title></path>'
        )
    said = []
    for i, (side, (x, y)) in enumerate(upwards(points)):
        said.append(f"{name(side)}: erased {percent(x)}, kept {percent(y)}")
        bars = (
            f"M{frame.x(x.low):.1f} {frame.y(y.estimate):.1f}H{frame.x(x.high):.1f}"
            f"M{frame.x(x.estimate):.1f} {frame.y(y.low):.1f}V{frame.y(y.high):.1f}"
        )
        at = frame.x(x.estimate), frame.y(y.estimate)
        left = x.estimate > 0.5
        words = label(at[0] + (-12 if left else 12), at[1] + 22 + 17 * i, name(side), "end" if left else "start", "name")
        parts.append(f'<g class="{kind(side)}"><title>{said[-1]}</title><path class="whisker" d="{bars}"/>{shape(side, *at)}{words}</g>')
    return svg(440, BOTTOM + FOOT, f"Erased against kept. {'; '.join(said)}", parts)


def curves(lines: Sequence[Line], along: str, up: str, *, base: Interval | None = None, bands: bool = False) -> Markup:
    """Lines of shares over pictures or steps; the interval at the end of each stands beside the chart, under its letter.

    Args:
        along, up: names of the axes, fixed words.
        base: drawn as a dashed line, half of it as a dotted one.
        bands: whether intervals are drawn along the lines.
    """
    frame = Frame(right=320, most=max([x for line in lines for x, _ in line.points] + [1]))
    parts = [frame.axes(along, up)]
    if base is not None:
        parts += [_level(frame, base.estimate, "base", "the base's rate"), _level(frame, base.estimate / 2, "half", "half of it")]
    parts += [_line(frame, line, i, bands) for i, line in enumerate(lines)]
    parts += [_end(frame, line, i) for i, line in enumerate(lines)]
    parts.append(label(frame.right + 24, BOTTOM + 40, "at the end, 95 %", "start", "small"))
    said = "; ".join(f"{line.letter} ends at {percent(line.points[-1][1])}" for line in lines)
    return svg(frame.right + max(COLUMN * len(lines) + 32, 130), BOTTOM + FOOT, f"{up}, over {along}. {said}", parts)


def _level(frame: Frame, share: float, look: str, words: str) -> str:
    y = frame.y(share)
    return f'<path class="level {look}" d="M{LEFT} {y:.1f}H{frame.right:.1f}"><title>{words}: {printed.percent(share)} %</title></path>'


def _line(frame: Frame, line: Line, i: int, bands: bool) -> str:
    at = [(frame.x(x), frame.y(share.estimate)) for x, share in line.points]
    parts = []
    if bands:
        there = [f"{frame.x(x):.1f} {frame.y(share.high):.1f}" for x, share in line.points]
        back = [f"{frame.x(x):.1f} {frame.y(share.low):.1f}" for x, share in reversed(line.points)]
        parts.append(f'<path class="band" d="M{"L".join(there + back)}Z"/>')
    parts.append(f'<path class="line"{dashed(line, i)} d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in at)}"/>')
    for (x, y), (value, share) in zip(at, line.points, strict=True):
        if value == line.mark:
            parts.append(f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="8"/>')
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{2.5 if len(at) < 30 else 1.2}">')
        parts.append(f"<title>{line.letter}, {value:g}: {percent(share)}</title></circle>")
    return f'<g class="{colour(i, line.control)}">{"".join(parts)}</g>'


def _end(frame: Frame, line: Line, i: int) -> str:
    x, share = frame.right + 32 + COLUMN * i, line.points[-1][1]
    bar = f'<path class="whisker"{dashed(line, i)} d="M{x:.1f} {frame.y(share.low):.1f}V{frame.y(share.high):.1f}"/>'
    dot = f'<circle class="dot" cx="{x:.1f}" cy="{frame.y(share.estimate):.1f}" r="3.5"/>'
    words = f"<title>{line.letter}: {percent(share)}</title>{label(x, BOTTOM + 19, line.letter, look='letter')}"
    return f'<g class="{colour(i, line.control)}">{words}{bar}{dot}</g>'


def bar(sides: Mapping[str, Interval]) -> Markup:
    """A rate from 0 to 1: the erased model with its interval, the others as marks."""
    parts = ['<path class="grid" d="M6 11H154M6 6v10M80 8v6M154 6v10"/>']
    for side, share in upwards(sides):
        x = 6 + 148 * share.estimate
        if side == "erased":
            low, high = 6 + 148 * share.low, 6 + 148 * share.high
            parts.append(f'<rect class="erased span" x="{low:.1f}" y="7" width="{max(high - low, 1):.1f}" height="8" rx="3"/>')
        parts.append(f'<g class="{kind(side)}">{shape(side, x, 11, 6.5 if side == "base" else 4)}</g>')
    return svg(160, 22, "; ".join(f"{name(side)} {percent(share)}" for side, share in sides.items()), parts, "bar")


def gate(found: Interval, limit: float, least: bool) -> Markup:
    """An interval beside its threshold; the side that passes is shaded.

    Args:
        least: whether values above the threshold pass, else those below.
    """
    low, high = min(found.low, limit), max(found.high, limit)
    reach = max(high - low, 0.02)

    def x(value: float) -> float:
        return 12 + 136 * (value - low) / reach

    start, end = (x(limit), 160.0) if least else (0.0, x(limit))
    line = f"M{x(found.low):.1f} 11H{x(found.high):.1f}"
    parts = [
        f'<rect class="good" x="{start:.1f}" y="2" width="{end - start:.1f}" height="18"/>',
        f'<path class="threshold" d="M{x(limit):.1f} 0V22"/>',
        f'<g class="erased"><path class="whisker" d="{line}"/>{shape("erased", x(found.estimate), 11, 4.5)}</g>',
    ]
    asked = f"at {'least' if least else 'most'} {100 * limit:g}"
    return svg(160, 22, f"measured {percent(found)}, asked for {asked} %", parts, "bar")


def key(i: int, control: bool) -> Markup:
    """How line i of a chart looks."""
    dash = dashed(Line(letter="", points=(), control=control), i)
    body = f'<g class="{colour(i, control)}"><path class="line"{dash} d="M1 8H29"/><circle class="dot" cx="15" cy="8" r="3"/></g>'
    return Markup(f'<svg class="key" viewBox="0 0 30 16" aria-hidden="true">{body}</svg>')


def letter(i: int) -> str:
    """A, B, ..., Z, AA, AB, ..."""
    return (letter(i // 26 - 1) if i >= 26 else "") + chr(65 + i % 26)


def colour(i: int, control: bool) -> str:
    return "series control" if control else f"series c{i % COLOURS}"


def dashed(line: Line, i: int) -> str:
    return f' stroke-dasharray="{6 - 2 * (i % 3)} 4"' if line.control else ""


def kind(side: str) -> str:
    """base, erased or oracle; further oracles are numbered."""
    return side.partition("-")[0]


def upwards(sides: Mapping[str, T]) -> list[tuple[str, T]]:
    """The erased model last, on top of the others."""
    return sorted(sides.items(), key=lambda item: item[0] == "erased")


def name(side: str) -> str:
    """A model as a reader calls it."""
    return side.replace("oracle", "never saw it").replace("-", " ")


def shape(side: str, x: float, y: float, r: float = 6) -> str:
    """A ring for the base, a disc for the erased model, a diamond for one that never saw the concept."""
    if kind(side) == "oracle":
        return f'<path class="mark" d="M{x:.1f} {y - r - 1:.1f}l{r + 1} {r + 1}l{-r - 1} {r + 1}l{-r - 1} {-r - 1}z"/>'
    return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="{r:g}"/>'


def label(x: float, y: float, words: str, anchor: str = "middle", look: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{f" class={look}" if look else ""}>{words}</text>'


def percent(share: Interval) -> str:
    return minus(f"{printed.percent(share.estimate)} % ({printed.percent_span(share.low, share.high)})")


def minus(number: str) -> str:
    return number.replace("-", "−")


def ticks(most: float) -> list[float]:
    """Up to six round numbers from 0 on."""
    size = 1.0
    while most / size > 5:
        size *= 2.5 if f"{size:g}".startswith("2") else 2
    return [size * i for i in range(int(most / size) + 1)]


def svg(width: float, height: float, words: str, parts: Sequence[str], look: str = "chart") -> Markup:
    body = "".join(parts)
    return Markup(
        f'<svg class="{look}" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{words}"><title>{words}</title>{body}</svg>'
    )
