"""Figures of a fit: its way down, how stationary each block ended, how much each atom is used.

Built on `Figure` without pyplot, so no display is needed and nothing global changes.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

INK, MUTED, FAINT = "#1f2933", "#7b8794", "#d9dee3"
BLUE, BAR, GREEN, RED = "#2b6cb0", "#4a83be", "#2f855a", "#c53030"


def convergence(history, *, bound=None, tol: float | None = None) -> Figure:
    """Objective and stationarity by step, one above the other.

    `history` has arrays `objective` and `stationarity` by step (NaN beyond the last), `bound` is the certified wide
    bound that no dictionary of any width goes below.
    """
    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    draw_objective(upper, history, bound)
    draw_stationarity(lower, history, tol)
    return figure


def stationarity_by_block(certificate, *, tol: float = 1e-6) -> Figure:
    """Bars of a certificate's stationarity by block against the tolerance."""
    figure = Figure(figsize=(6.0, 2.6), layout="constrained")
    draw_blocks(figure.subplots(), certificate, tol)
    return figure


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


def draw_objective(axes: Axes, history, bound=None) -> None:
    """Objective by step above the wide bound."""
    values = _recorded(history, "objective")
    axes.plot(np.arange(1, len(values) + 1), values, color=BLUE, lw=1.8)
    _dress(axes, "Objective", "mean over samples")
    finite = values[np.isfinite(values)]
    if not finite.size:
        return
    # The first steps may start far up: show the way down from the 5th on, and say so by cutting the curve at the frame.
    top = finite[min(4, len(finite) - 1) :].max()
    low = finite.min() if bound is None else min(float(bound), finite.min())
    room = max(top - low, 1e-9 * abs(top), 1e-12)
    axes.set_ylim(low - 0.16 * room, top + 0.12 * room)
    axes.annotate(
        f"end: {finite[-1]:.6g}",
        (len(values), finite[-1]),
        (0, 7),
        textcoords="offset points",
        ha="right",
        color=BLUE,
    )
    if bound is not None:
        axes.axhline(float(bound), color=MUTED, lw=1.2, ls=(0, (4, 3)))
        axes.annotate(
            f"no dictionary of any width goes below {float(bound):.6g}",
            (0.99, float(bound)), (0, -4), xycoords=("axes fraction", "data"), textcoords="offset points",
            ha="right", va="top", fontsize=9, color=MUTED,
        )  # fmt: skip


def draw_stationarity(axes: Axes, history, tol: float | None = None) -> None:
    """Worst stationarity by step, logarithmic."""
    values = _recorded(history, "stationarity")
    shown = np.where(np.isfinite(values) & (values > 0), values, np.nan)
    axes.plot(np.arange(1, len(values) + 1), shown, color=INK, lw=1.4)
    axes.set_yscale("log")
    if tol and not np.isfinite(shown).any():
        axes.set_ylim(tol / 10, 10)
    _dress(axes, "Distance from stationarity", "worst block; 0 is stationary")
    axes.set_xlabel("step", color=MUTED)
    axes.set_xlim(0, max(1, len(values)) * 1.02)
    axes.yaxis.set_minor_locator(NullLocator())
    if tol is not None:
        axes.axhline(tol, color=GREEN, lw=1.2, ls=(0, (4, 3)))
        axes.annotate(
            f"tolerance {tol:g}", (0.01, tol), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
            fontsize=9, color=GREEN,
        )  # fmt: skip


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
    _dress(axes, "Certificate, recomputed from the result", "", grid="x")
    axes.set_ylim(len(blocks) - 0.5, -0.85)
    axes.set_xlabel("distance from stationarity, by block", color=MUTED)
    axes.xaxis.set_major_locator(LogLocator(numticks=7))
    axes.xaxis.set_minor_locator(NullLocator())


def draw_usage(axes: Axes, usage) -> None:
    """Histogram of the share of samples on which each atom is active."""
    usage = np.asarray(usage, float)
    live = usage[usage > 0]
    _dress(axes, "How much the atoms are used", "atoms")
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


def _recorded(history, name) -> np.ndarray:
    """The steps taken: the NaN padding at the end left off."""
    values = np.asarray(history[name] if isinstance(history, dict) else getattr(history, name), float)
    seen = np.flatnonzero(~np.isnan(values))
    return values[: seen[-1] + 1] if seen.size else values[:0]


def _dress(axes: Axes, title: str, unit: str, grid: str = "y") -> None:
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_ylabel(unit, color=MUTED)
    axes.grid(axis=grid, color=FAINT, lw=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
