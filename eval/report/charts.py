"""The report's charts as inline SVG, from numbers and fixed words alone: no text from a suite or a prompt enters here.

Colors are classes of the page's style sheet. Whatever a color says, a shape, a dash or a letter says as well.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from markupsafe import Markup

from eval.records.models import BASE, ERASED, AuditedModel
from eval.report import numbers
from eval.stats.intervals import Interval

LEFT, TOP, BOTTOM, FOOTER = 46.0, 26.0, 286.0, 52.0  # of the plot area, in SVG units; FOOTER is the space below it
INTERVAL_WIDTH = 17.0  # of an interval at the right of a line chart
QUARTERS = (0, 0.25, 0.5, 0.75, 1)

COLORS = 6  # in the style sheet; letters distinguish more lines than that
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a chart: shares after some number of images or steps."""

    letter: str
    points: Sequence[tuple[float, Interval]]
    control: bool = False
    ring_at: float | None = None  # x of the point with a ring


@dataclass(frozen=True)
class PlotArea:
    """Maps data to the SVG: x from 0 to `x_max`, y from 0 to 1."""

    right: float
    x_max: float

    def x(self, value: float) -> float:
        return LEFT + value / self.x_max * (self.right - LEFT)

    def y(self, share: float) -> float:
        return BOTTOM - share * (BOTTOM - TOP)

    def axes(self, x_title: str, y_title: str, percent: bool = False) -> str:
        """Return grid lines, ticks and the names of both axes."""
        parts = []
        for share in QUARTERS:
            y = self.y(share)
            parts.append(
                f'<path class="grid" d="M{LEFT:.1f} {y:.1f}H{self.right:.1f}"/>{text_label(LEFT - 7, y + 4, f"{100 * share:g}", "end")}'
            )
        for tick in QUARTERS if percent else axis_ticks(self.x_max):
            tick_text = f"{100 * tick:g}" if percent else f"{tick:g}"
            parts.append(f'<path class="grid" d="M{self.x(tick):.1f} {BOTTOM:.1f}v5"/>{text_label(self.x(tick), BOTTOM + 19, tick_text)}')
        parts.append(text_label((LEFT + self.right) / 2, BOTTOM + 40, x_title))
        parts.append(text_label(2, TOP - 12, y_title, "start"))
        return "".join(parts)


def scatter_chart(
    points: Mapping[AuditedModel, tuple[Interval, Interval]], erased_threshold: float | None, retained_threshold: float | None
) -> Markup:
    """Plot erased (x) against retained (y), a cross of both intervals for every model.

    Args:
        points: by model: (erased, retained).
        erased_threshold, retained_threshold: None if the gates have none.
    """
    area = PlotArea(right=420, x_max=1)
    parts = [area.axes("erased: UA, %", "retained: mean of IRA and CRA, %", percent=True)]
    parts.append(text_label(area.x(0.97), area.y(0.04), "everything erased", "end", "corner"))
    parts.append(text_label(area.x(0.03), area.y(0.04), "only damage done", "start", "corner"))
    if erased_threshold is not None:
        title = f"<title>threshold: at least {100 * erased_threshold:g}%</title>"
        parts.append(f'<path class="gate" d="M{area.x(erased_threshold):.1f} {TOP}V{BOTTOM}">{title}</path>')
    if retained_threshold is not None:
        title = f"<title>threshold: at least {100 * retained_threshold:.1f}%</title>"
        parts.append(f'<path class="gate" d="M{LEFT} {area.y(retained_threshold):.1f}H{area.right}">{title}</path>')
    descriptions = []
    for i, (model, (x, y)) in enumerate(erased_last(points)):
        descriptions.append(f"{model.title}: erased {percent_with_interval(x)}, retained {percent_with_interval(y)}")
        bars = (
            f"M{area.x(x.low):.1f} {area.y(y.estimate):.1f}H{area.x(x.high):.1f}"
            f"M{area.x(x.estimate):.1f} {area.y(y.low):.1f}V{area.y(y.high):.1f}"
        )
        center = area.x(x.estimate), area.y(y.estimate)
        label_left = x.estimate > 0.5
        model_label = text_label(
            center[0] + (-12 if label_left else 12), center[1] + 22 + 17 * i, model.title, "end" if label_left else "start", "name"
        )
        shapes = f'<path class="whisker" d="{bars}"/>{marker(model, *center)}{model_label}'
        parts.append(f'<g class="{model.role.value}"><title>{descriptions[-1]}</title>{shapes}</g>')
    return svg(440, BOTTOM + FOOTER, f"Erased against retained. {'; '.join(descriptions)}", parts)


def line_chart(lines: Sequence[Line], x_title: str, y_title: str, *, base: Interval | None = None, bands: bool = False) -> Markup:
    """Plot lines of shares over images or steps; the interval at the end of each is at the right of the chart, under its letter.

    Args:
        x_title, y_title: names of the axes, fixed words.
        base: plotted as a dashed line, half of it as a dotted one.
        bands: whether to plot intervals along the lines.
    """
    area = PlotArea(right=320, x_max=max([x for line in lines for x, _ in line.points] + [1]))
    parts = [area.axes(x_title, y_title)]
    if base is not None:
        parts += [_level_line(area, base.estimate, "base", "the base's rate"), _level_line(area, base.estimate / 2, "half", "half of it")]
    parts += [_data_line(area, line, i, bands) for i, line in enumerate(lines)]
    parts += [_end_interval(area, line, i) for i, line in enumerate(lines)]
    parts.append(text_label(area.right + 24, BOTTOM + 40, "at the end, 95%", "start", "small"))
    description = "; ".join(f"{line.letter} ends at {percent_with_interval(line.points[-1][1])}" for line in lines)
    return svg(area.right + max(INTERVAL_WIDTH * len(lines) + 32, 130), BOTTOM + FOOTER, f"{y_title}, over {x_title}. {description}", parts)


def _level_line(area: PlotArea, share: float, css_class: str, title: str) -> str:
    y = area.y(share)
    title_element = f"<title>{title}: {numbers.format_percent(share)}%</title>"
    return f'<path class="level {css_class}" d="M{LEFT} {y:.1f}H{area.right:.1f}">{title_element}</path>'


def _data_line(area: PlotArea, line: Line, i: int, bands: bool) -> str:
    coordinates = [(area.x(x), area.y(share.estimate)) for x, share in line.points]
    parts = []
    if bands:
        upper = [f"{area.x(x):.1f} {area.y(share.high):.1f}" for x, share in line.points]
        lower = [f"{area.x(x):.1f} {area.y(share.low):.1f}" for x, share in reversed(line.points)]
        parts.append(f'<path class="band" d="M{"L".join(upper + lower)}Z"/>')
    parts.append(f'<path class="line"{dash_attribute(line, i)} d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in coordinates)}"/>')
    for (x, y), (value, share) in zip(coordinates, line.points, strict=True):
        if value == line.ring_at:
            parts.append(f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="8"/>')
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{2.5 if len(coordinates) < 30 else 1.2}">')
        parts.append(f"<title>{line.letter}, {value:g}: {percent_with_interval(share)}</title></circle>")
    return f'<g class="{color_class(i, line.control)}">{"".join(parts)}</g>'


def _end_interval(area: PlotArea, line: Line, i: int) -> str:
    x, share = area.right + 32 + INTERVAL_WIDTH * i, line.points[-1][1]
    whisker = f'<path class="whisker"{dash_attribute(line, i)} d="M{x:.1f} {area.y(share.low):.1f}V{area.y(share.high):.1f}"/>'
    dot = f'<circle class="dot" cx="{x:.1f}" cy="{area.y(share.estimate):.1f}" r="3.5"/>'
    texts = f"<title>{line.letter}: {percent_with_interval(share)}</title>{text_label(x, BOTTOM + 19, line.letter, css_class='letter')}"
    return f'<g class="{color_class(i, line.control)}">{texts}{whisker}{dot}</g>'


def rate_bar(interval_by_model: Mapping[AuditedModel, Interval]) -> Markup:
    """Plot a rate from 0 to 1: the erased model with its interval, the others as marks."""
    parts = ['<path class="grid" d="M6 11H154M6 6v10M80 8v6M154 6v10"/>']
    for model, share in erased_last(interval_by_model):
        x = 6 + 148 * share.estimate
        if model == ERASED:
            low, high = 6 + 148 * share.low, 6 + 148 * share.high
            parts.append(f'<rect class="erased span" x="{low:.1f}" y="7" width="{max(high - low, 1):.1f}" height="8" rx="3"/>')
        parts.append(f'<g class="{model.role.value}">{marker(model, x, 11, 6.5 if model == BASE else 4)}</g>')
    return svg(
        160,
        22,
        "; ".join(f"{model.title} {percent_with_interval(share)}" for model, share in interval_by_model.items()),
        parts,
        "bar",
    )


def gate_chart(measured: Interval, threshold: float, at_least: bool) -> Markup:
    """Plot an interval with its threshold; the side that passes is shaded.

    Args:
        at_least: whether values above the threshold pass, else those below.
    """
    low, high = min(measured.low, threshold), max(measured.high, threshold)
    extent = max(high - low, 0.02)

    def x(value: float) -> float:
        return 12 + 136 * (value - low) / extent

    start, end = (x(threshold), 160.0) if at_least else (0.0, x(threshold))
    whisker = f"M{x(measured.low):.1f} 11H{x(measured.high):.1f}"
    parts = [
        f'<rect class="good" x="{start:.1f}" y="2" width="{end - start:.1f}" height="18"/>',
        f'<path class="threshold" d="M{x(threshold):.1f} 0V22"/>',
        f'<g class="erased"><path class="whisker" d="{whisker}"/>{marker(ERASED, x(measured.estimate), 11, 4.5)}</g>',
    ]
    threshold_text = f"at {'least' if at_least else 'most'} {100 * threshold:g}"
    return svg(160, 22, f"measured {percent_with_interval(measured)}, threshold {threshold_text}%", parts, "bar")


def legend_key(i: int, control: bool) -> Markup:
    """Return a sample of line i of a chart, for its legend."""
    dash = dash_attribute(Line(letter="", points=(), control=control), i)
    sample = f'<g class="{color_class(i, control)}"><path class="line"{dash} d="M1 8H29"/><circle class="dot" cx="15" cy="8" r="3"/></g>'
    return Markup(f'<svg class="key" viewBox="0 0 30 16" aria-hidden="true">{sample}</svg>')


def line_letter(i: int) -> str:
    """Return A, B, ..., Z, AA, AB, ..."""
    return (line_letter(i // 26 - 1) if i >= 26 else "") + chr(65 + i % 26)


def color_class(i: int, control: bool) -> str:
    return "series control" if control else f"series c{i % COLORS}"


def dash_attribute(line: Line, i: int) -> str:
    return f' stroke-dasharray="{6 - 2 * (i % 3)} 4"' if line.control else ""


def erased_last(values_by_model: Mapping[AuditedModel, T]) -> list[tuple[AuditedModel, T]]:
    """Put the erased model last, on top of the others."""
    return sorted(values_by_model.items(), key=lambda item: item[0] == ERASED)


def marker(model: AuditedModel, x: float, y: float, r: float = 6) -> str:
    """Draw a ring for the base, a disc for the erased model, a diamond for a retrained model."""
    if model.is_retrained:
        return f'<path class="mark" d="M{x:.1f} {y - r - 1:.1f}l{r + 1} {r + 1}l{-r - 1} {r + 1}l{-r - 1} {-r - 1}z"/>'
    return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="{r:g}"/>'


def text_label(x: float, y: float, text: str, anchor: str = "middle", css_class: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{f" class={css_class}" if css_class else ""}>{text}</text>'


def percent_with_interval(share: Interval) -> str:
    return use_minus_sign(f"{numbers.format_percent(share.estimate)}% ({numbers.format_percent_span(share.low, share.high)})")


def use_minus_sign(number: str) -> str:
    return number.replace("-", "−")


def axis_ticks(x_max: float) -> list[float]:
    """Return up to six round numbers from 0 on."""
    step = 1.0
    while x_max / step > 5:
        step *= 2.5 if f"{step:g}".startswith("2") else 2
    return [step * i for i in range(int(x_max / step) + 1)]


def svg(width: float, height: float, title: str, parts: Sequence[str], css_class: str = "chart") -> Markup:
    body = "".join(parts)
    return Markup(
        f'<svg class="{css_class}" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{title}"><title>{title}</title>{body}</svg>'
    )
