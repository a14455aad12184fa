"""Figures of a fit: its way down, how stationary each block ended, how much each atom is used.

Built on `Figure` without pyplot, so no display is needed and nothing global changes.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from jaxdict.reporting.curves import GREEN, INK, MUTED, RED, draw_objective, draw_stationarity, dress

BAR = "#4a83be"


def fit_figure(history, certificate, usage, *, tol: float = 1e-6, title: str = "") -> Figure:
    """A whole fit on one sheet: convergence on the left, stationarity by block and the use of atoms on the right.

    `usage` is (atoms,) the share of samples on which each atom is active.
    """
    figure = Figure(figsize=(11.5, 6.2), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr]
    panels = figure.subplot_mosaic([["objective", "blocks"], ["stationarity", "usage"]], width_ratios=[1.25, 1])
    panels["objective"].sharex(panels["stationarity"])
    draw_objective(panels["objective"], history, certificate.wide_bound)
    panels["objective"].tick_params(labelbottom=False)
    draw_stationarity(panels["stationarity"], history, tol)
    draw_blocks(panels["blocks"], certificate, tol)
    draw_usage(panels["usage"], usage)
    if title:
        figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold", color=INK)
    return figure


def stream_figure(history, *, tol: float, title: str = "") -> Figure:
    """A stream's fit: the objective at each look against rows taken, and the slopes over all training rows pass by pass."""
    figure = Figure(figsize=(11.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    ends = {stage: int(np.max(history["rows"][history["stage"] == stage], initial=0)) for stage in (0, 1)}
    for stage, name, color in ((0, "batches", BAR), (1, "exact passes", INK)):
        own = history["stage"] == stage
        taken = np.asarray(history["rows"], float)[own] + (ends[0] if stage else 0)
        spread = np.nan_to_num(np.asarray(history["standard_error"], float)[own])
        left.errorbar(taken, np.asarray(history["objective"], float)[own], spread, color=color, label=name, lw=1.6)
    dress(left, "Objective on rows kept aside, with standard error", "mean over rows")
    left.set_xlabel("training rows taken", color=MUTED)
    left.legend(frameon=False)
    passes = history["stage"] == 1
    draw_stationarity(right, {"stationarity": np.asarray(history["stationarity"], float)[passes]}, tol)
    right.set_xlabel("accepted pass", color=MUTED)
    if title:
        figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold", color=INK)
    return figure


def draw_blocks(axes: Axes, certificate, tol: float) -> None:
    """One bar a block: green within the tolerance, red beyond."""
    blocks = ("codes", "atoms", "offset")
    values = np.array([float(getattr(certificate.stationarity, block)) for block in blocks])
    finite = values[np.isfinite(values) & (values > 0)]
    left = 10.0 ** np.floor(np.log10(min([tol * 1e-2, *(finite / 3)])))
    right = 10.0 ** np.ceil(np.log10(max([tol * 10, *(finite * 3)])))
    lengths = np.where(np.isnan(values), right, np.clip(values, left, right))
    colors = [GREEN if value <= tol else RED for value in values]
    axes.barh(blocks, lengths - left, left=left, height=0.55, color=colors)
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    axes.invert_yaxis()
    for row, (value, length) in enumerate(zip(values, lengths, strict=True)):
        text = "0" if value == 0 else "not a number" if np.isnan(value) else f"{value:.1e}"
        inside = np.log10(length / left) > 0.2 * np.log10(right / left)  # there is room for it in the bar
        side, color = ("right", "white") if inside else ("left", INK)
        axes.annotate(
            text, (length, row), (-5 if inside else 5, 0), textcoords="offset points", va="center", ha=side, color=color
        )
    axes.axvline(tol, color=INK, lw=1.2, ls=(0, (4, 3)))
    late = np.log10(tol / left) > 0.5 * np.log10(right / left)
    axes.annotate(
        f"tolerance {tol:g}", (tol, 1.0), (-4 if late else 4, -3), xycoords=("data", "axes fraction"),
        textcoords="offset points", ha="right" if late else "left", va="top", fontsize=9, color=INK,
    )  # fmt: skip
    dress(axes, "Certificate, recomputed from the result", "", grid="x")
    axes.set_ylim(len(blocks) - 0.5, -0.85)
    axes.set_xlabel("distance from stationarity, by block", color=MUTED)
    axes.xaxis.set_major_locator(LogLocator(numticks=7))
    axes.xaxis.set_minor_locator(NullLocator())


def draw_usage(axes: Axes, usage) -> None:
    """Histogram of the share of samples on which each atom is active."""
    usage = np.asarray(usage, float)
    live = usage[usage > 0]
    dress(axes, "How much the atoms are used", "atoms")
    axes.set_xlabel("share of samples on which an atom is active", color=MUTED)
    if not live.size:
        axes.annotate("no atom is used", (0.5, 0.5), xycoords="axes fraction", ha="center", color=MUTED)
        return
    edges = np.geomspace(live.min() * 0.95, max(live.max() * 1.05, live.min() * 2), 25)
    axes.hist(live, edges, color=BAR)
    axes.set_xscale("log")
    decades = np.log10(edges[-1] / edges[0])
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 2.5 else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.2)
    dead = len(usage) - len(live)
    facts = f"{usage.sum():.1f} active atoms a sample" + (f"\n{dead} of {len(usage)} atoms unused" if dead else "")
    axes.annotate(facts, (0.98, 0.95), xycoords="axes fraction", ha="right", va="top", fontsize=9, color=MUTED)
