"""The report's figures, one function each: figures in, an SVG element as text out.

Text and axes take the colour and font of the page around them (`currentColor`), curves have middle tones, so that a
figure reads on light and dark alike. Same data, same bytes: no dates, and identifiers from a fixed salt.
"""

import hashlib
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import Any
from xml.sax.saxutils import quoteattr

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter
from numpy.typing import NDArray

from arnas.reporting import histories
from arnas.space.drawing import COLOURS

INK = "#010203"  # stands for currentColor until the figure is written
SERIES = ("#1f83c6", "#d55e00", "#009e73", "#cc79a7", "#9a7fd1", "#b08400", "#7f7f7f")
MARKERS = "osD^vPX"
STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.prop_cycle": cycler("color", SERIES),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "font.size": 9,
    "grid.alpha": 0.15,
    "grid.color": INK,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "lines.linewidth": 1.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "arnas",
    "text.color": INK,
    "text.parse_math": False,  # a dollar in a model's name is a dollar
    "xtick.color": INK,
    "ytick.color": INK,
}
WIDTH = 4.4  # inches; letters are then about as large as the page's on a phone, and larger on a desk


def _figure(draw: Callable[..., tuple[Figure, str]]) -> Callable[..., str]:
    """Make a function that draws a figure and words its label give the SVG element in our style."""

    @wraps(draw)
    def styled(*args: Any, **kwargs: Any) -> str:
        with matplotlib.rc_context(STYLE):
            figure, label = draw(*args, **kwargs)
            return _svg(figure, label)

    return styled


@_figure
def search_losses(history: Mapping[str, Any]) -> tuple[Figure, str]:
    """Losses of a search against epochs; `history` as in a supernet's history.json."""
    figure, axes = _axes(2.6)
    ends = []
    for column, name, colour in (
        ("train_loss", "training, adversarial", SERIES[6]),
        ("adversarial_loss", "validation, adversarial", SERIES[1]),
        ("natural_loss", "validation, natural", SERIES[0]),
    ):
        losses = _curve(axes, history, column, name, colour)
        ends.append(f"{name} from {losses[0]:.2f} to {losses[-1]:.2f}")
    axes.set(xlabel="epochs passed", title="loss (nats)")
    _legend(figure, 2)
    return figure, "Losses of the search over its epochs: " + ", ".join(ends)


@_figure
def search_gradients(history: Mapping[str, Any]) -> tuple[Figure, str]:
    """The min-norm weight gamma, and the norms of both hypergradients, against epochs."""
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    gamma = _curve(above, history, "gamma", None, SERIES[4])
    above.set(ylim=(-0.04, 1.04), title="gamma, the weight of the natural gradient")
    for name, colour in (("natural", SERIES[0]), ("adversarial", SERIES[1])):
        _curve(below, history, f"{name}_norm", name, colour)
    below.set(xlabel="epochs passed", title="norm of the hypergradient")
    norms = np.concatenate([histories.column(history, f"{name}_norm") for name in ("natural", "adversarial")])
    if norms.min() > 0:
        below.set_yscale("log")
        below.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if norms.max() < 100 * norms.min() else (1,)))
        below.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        below.yaxis.set_minor_locator(NullLocator())
    _legend(figure, 2)
    return (
        figure,
        f"Gamma, from {gamma[0]:.2f} to {gamma[-1]:.2f}, and the norms of both hypergradients over the search",
    )


@_figure
def operation_weights(history: Mapping[str, Any], operations: Sequence[str]) -> tuple[Figure, str]:
    """Mean weight over the 14 edges of each operation, against epochs, for each cell kind."""
    epochs = history["epochs"]
    kinds = [kind for kind in COLOURS if kind in epochs[0]["weights"]]
    figure = Figure(figsize=(WIDTH, 1.75 * len(kinds) + 0.7), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(kinds), 1, sharex=True, sharey=True))
    strongest = []
    for axes, kind in zip(panels, kinds, strict=True):
        means = histories.weights(history, kind)
        for index, operation in enumerate(operations):
            axes.plot(_epochs(history), means[:, index], marker=MARKERS[index], markersize=3, label=operation)
        axes.axhline(1 / len(operations), color=INK, alpha=0.4, linewidth=0.8, linestyle="--")
        axes.set(title=f"{kind} cell")
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}%")
        strongest.append(f"{operations[int(means[-1].argmax())]} ({means[-1].max():.1%}) in the {kind} cell")
    panels[-1].set(xlabel="epoch")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(figure, 3, panels[0])
    return figure, "Mean weight of each operation over the search; at its end the strongest is " + ", ".join(strongest)


@_figure
def entropy(history: Mapping[str, Any], operations: int) -> tuple[Figure, str]:
    """Entropy of the operation weights against epochs, for each cell kind; the dashed line is that of equal weights."""
    figure, axes = _axes(2.3)
    ends = _per_kind(axes, history, "entropy", lambda value: f"{value:.3f}")
    axes.axhline(np.log(operations), color=INK, alpha=0.5, linewidth=0.9, linestyle="--")
    axes.set(title="entropy of the operation weights (nats)")
    _legend(figure, 3)
    return figure, "Entropy of the operation weights over the search: " + ends


@_figure
def skips(history: Mapping[str, Any], limit: int) -> tuple[Figure, str]:
    """Skip connections of the genotype against epochs, for each cell kind; the dashed line is the collapse limit."""
    figure, axes = _axes(2.3)
    ends = _per_kind(axes, history, "skips", str)
    axes.axhline(limit, color=INK, alpha=0.5, linewidth=0.9, linestyle="--")
    axes.set(title="skip connections among a cell's 8 edges", ylim=(-0.3, 8.3))
    _legend(figure, 3)
    return figure, "Skip connections of the genotype over the search: " + ends


@_figure
def training(name: str, history: Mapping[str, Any], selection: Mapping[str, Any]) -> tuple[Figure, str]:
    """Hold-out accuracy, clean and under PGD, against epochs, with the best and the last epoch marked."""
    figure, axes = _axes(2.6)
    epochs = history["epochs"]
    x = [epoch["epoch"] for epoch in epochs]
    accuracy = [epoch["train_accuracy"] for epoch in epochs]
    axes.plot(x, accuracy, "--", color=SERIES[6], linewidth=1, label="training batches")
    for column, label, colour in (("clean", "hold-out, clean", SERIES[0]), ("robust", "hold-out, PGD", SERIES[1])):
        axes.plot(x, [epoch[column] for epoch in epochs], color=colour, label=label)
        for moment, marker, size in (("last", "s", 5), ("best", "*", 11)):
            axes.plot(
                selection[moment]["epoch"],
                selection[moment][column],
                marker,
                markersize=size,
                color=colour,
                clip_on=False,
            )
    axes.plot([], [], "*", color=INK, markersize=8, label="best epoch")
    axes.plot([], [], "s", color=INK, markersize=4, label="last epoch")
    axes.set(xlabel="epoch", title=f"accuracy of {name}", ylim=(0, 1))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(figure, 3)
    words = [
        f"{moment} epoch {chosen['epoch']} with {chosen['clean']:.1%} clean and {chosen['robust']:.1%} robust"
        for moment, chosen in selection.items()
    ]
    return figure, f"Training of {name}: {', '.join(words)}, on the hold-out"


@_figure
def matrix(scores: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> tuple[Figure, str]:
    """Heat map of accuracy under transferred examples: a row for the source, a column for the target."""
    sources, targets = list(scores), list(dict.fromkeys(target for row in scores.values() for target in row))
    values = np.array([[scores[s][t]["accuracy"] if t in scores[s] else np.nan for t in targets] for s in sources])
    figure, axes = _axes(max(1.8, 0.9 + 0.45 * len(sources)))
    axes.pcolormesh(values, cmap="cividis", vmin=0, vmax=1, edgecolors="#808080", linewidth=0.8)
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            ink = "white" if value < 0.55 else "black"
            axes.text(column + 0.5, row + 0.5, f"{value:.1%}", ha="center", va="center", color=ink, weight="bold")
    axes.grid(False)
    slope = 25 if max(map(len, targets)) * len(targets) > 36 else 0
    axes.set_xticks(np.arange(len(targets)) + 0.5, targets, rotation=slope)
    axes.set_yticks(np.arange(len(sources)) + 0.5, sources)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.invert_yaxis()
    axes.set(xlabel="tried on (target)", ylabel="made on (source)")
    lowest = f"the lowest is {np.nanmin(values):.1%}"
    return figure, f"Accuracy of {', '.join(targets)} on examples made on {', '.join(sources)}; {lowest}"


@_figure
def scatter(
    models: Mapping[str, Mapping[str, Any]], attack: str, title: str, front: Sequence[str], chance: float | None
) -> tuple[Figure, str]:
    """Clean accuracy against that under an attack, with 95% intervals.

    Args:
        models: Entries of scores.json.
        attack, title: The attack's key, and what it is called.
        front: Names of the models to join, in order; none where they are not to be ranked.
        chance: Accuracy of guessing, None where it is not one.
    """
    columns = _columns(models)
    figure, axes = _axes(2.9 + 0.17 * -(-len(models) // columns))
    axes.plot(
        [models[name]["clean"]["accuracy"] for name in front],
        [models[name][attack]["accuracy"] for name in front],
        color=INK,
        alpha=0.45,
        linewidth=1,
        label="Pareto front" if len(front) > 1 else None,
    )
    points = []
    for index, (name, entry) in enumerate(models.items()):
        clean, robust = entry["clean"], entry[attack]
        (colour, marker), x, y = _look(index), clean["accuracy"], robust["accuracy"]
        axes.errorbar(x, y, xerr=_bars(clean), yerr=_bars(robust), color=colour, elinewidth=1.2, capsize=2)
        axes.plot(x, y, marker, color=colour, markersize=6, label=name)
        points.append(f"{name} {x:.1%} clean and {y:.1%} under {title}")
    if chance is not None:
        axes.axhline(chance, color=INK, alpha=0.5, linewidth=0.9, linestyle="--", label="chance")
    axes.set(xlabel="clean accuracy", title=f"{title} accuracy")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _legend(figure, columns)
    best = [f"on the Pareto front: {', '.join(front)}"] if front else []
    return figure, f"Clean against {title} accuracy: {'; '.join(points + best)}"


@_figure
def curves(curves: Mapping[str, Sequence[Mapping[str, Any]]], norm: str) -> tuple[Figure, str]:
    """Accuracy against the radius of the ball, in bands of 95% intervals; `curves` as in scores.json, by model.

    Radii double, so that they stand in equal steps; the first is zero.
    """
    radii = sorted({point["epsilon"] for curve in curves.values() for point in curve})
    columns = _columns(curves)
    figure, axes = _axes(2.6 + 0.17 * -(-len(curves) // columns))
    ends = []
    for index, (name, curve) in enumerate(curves.items()):
        colour, marker = _look(index)
        x = [radii.index(point["epsilon"]) for point in curve]
        low, high = zip(*(point["interval"] for point in curve), strict=True)
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        accuracy = [point["accuracy"] for point in curve]
        axes.plot(x, accuracy, marker=marker, markersize=4, color=colour, label=name, clip_on=False)
        ends.append(f"{name} from {accuracy[0]:.1%} to {accuracy[-1]:.1%} at {_radius(curve[-1]['epsilon'], norm)}")
    axes.set_xticks(range(len(radii)), [_radius(radius, norm) for radius in radii])
    axes.set(xlabel=f"epsilon ({norm}{', of 255' if norm == 'linf' else ''})", ylim=(0, 1), title="accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _legend(figure, columns)
    return figure, f"Accuracy against epsilon{' in steps of 1/255' if norm == 'linf' else ''}: " + "; ".join(ends)


@_figure
def operations(chosen: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> tuple[Figure, str]:
    """Share of edges that each operation has in each cell kind, with 95% intervals; as in study.json."""
    kinds = [kind for kind in COLOURS if kind in chosen]
    names = list(dict.fromkeys(name for kind in kinds for name in chosen[kind]))
    figure, axes = _axes(0.9 + 0.36 * len(names))
    most = []
    for index, kind in enumerate(kinds):
        entries = [chosen[kind][name] for name in names]
        shares = np.array([entry["share"] for entry in entries])
        y = np.arange(len(names)) + 0.22 * (index - (len(kinds) - 1) / 2)
        reach = np.array([entry["interval"] for entry in entries]).T - shares
        axes.errorbar(
            shares,
            y,
            xerr=np.abs(reach),
            fmt=MARKERS[index],
            color=COLOURS[kind],
            markersize=4.5,
            elinewidth=1.2,
            clip_on=False,
            label=f"{kind} cell",
        )
        most.append(f"{names[int(shares.argmax())]} ({shares.max():.1%}) in the {kind} cell")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlim=(0, None), title="share of the edges")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.tick_params(axis="y", length=0)
    _legend(figure, 3)
    return figure, "Operations chosen in each cell kind; most often " + ", ".join(most)


def _look(index: int) -> tuple[str, str]:
    """Colour and marker of a model; both together tell 49 apart."""
    return SERIES[index % len(SERIES)], MARKERS[(index + index // len(SERIES)) % len(MARKERS)]


def _columns(names: Iterable[str]) -> int:
    """Of a legend with these names, so that it fits under the figure."""
    longest = max(map(len, names))
    return 3 if longest <= 14 else 2 if longest <= 26 else 1


def _radius(epsilon: float, norm: str) -> str:
    return f"{255 * epsilon:.3g}" if norm == "linf" else f"{epsilon:.3g}"


def _axes(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _legend(figure: Figure, columns: int, axes: Axes | None = None) -> None:
    handles, labels = (axes or figure.axes[-1]).get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _epochs(history: Mapping[str, Any]) -> list[int]:
    return [epoch["epoch"] for epoch in history["epochs"]]


def _curve(axes: Axes, history: Mapping[str, Any], name: str, label: str | None, colour: str) -> NDArray[np.float64]:
    """Draw a column step by step; of a long history the means of equal pieces, in a band from least to largest."""
    shown = histories.curve(history, name)
    axes.plot(shown["epochs"], shown["mean"], color=colour, label=label)
    if "least" in shown:
        axes.fill_between(shown["epochs"], shown["least"], shown["largest"], color=colour, alpha=0.2, linewidth=0)
    return shown["mean"]


def _per_kind(axes: Axes, history: Mapping[str, Any], field: str, word: Callable[[Any], str]) -> str:
    """Draw a figure of every epoch for each cell kind; word how each ends."""
    ends = []
    for (kind, colour), width in zip(COLOURS.items(), (3.2, 2.2, 1.2), strict=True):  # what is below stays visible
        if kind in history["epochs"][0][field]:
            values = [epoch[field][kind] for epoch in history["epochs"]]
            marker = MARKERS[list(COLOURS).index(kind)]
            axes.plot(
                _epochs(history),
                values,
                color=colour,
                marker=marker,
                markersize=width + 2,
                linewidth=width,
                label=f"{kind} cell",
            )
            ends.append(f"{kind} from {word(values[0])} to {word(values[-1])}")
    axes.set(xlabel="epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return ", ".join(ends)


def _bars(score: Mapping[str, Any]) -> list[list[float]]:
    low, high = score["interval"]
    return [[max(0.0, score["accuracy"] - low)], [max(0.0, high - score["accuracy"])]]


def _svg(figure: Figure, label: str) -> str:
    """The <svg> element alone: labelled, in the colour and font of the page around it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    box = re.search(r'viewBox="[^"]+"', text)
    assert box is not None
    text = text[text.index("</metadata>") + len("</metadata>") :]
    text = re.sub(r"<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)  # a style would reach the whole page
    text = re.sub(r"font-family: [^;\"]+;? ?", "", text).replace(INK, "currentColor")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]} role="img" '
        f'aria-label={quoteattr(label)} stroke-linejoin="round">{_rename(text)}'
    )


def _rename(text: str) -> str:
    """Several figures share a page: an identifier that is referred to becomes this figure's own, the others go."""
    used = set(re.findall(r"#([\w-]+)[\")]", text))
    own = hashlib.sha256(text.encode()).hexdigest()[:8]
    text = re.sub(r' id="([^"]+)"', lambda match: f' id="f{own}-{match[1]}"' if match[1] in used else "", text)
    return re.sub(r"(href=\"|url\()#", rf"\1#f{own}-", text)
