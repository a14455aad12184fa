"""A fit's way down, step by step, on matplotlib axes that are given; matplotlib itself is only met when something is drawn."""

import numpy as np

INK, MUTED, FAINT = "#1f2933", "#7b8794", "#d9dee3"
BLUE, GREEN, RED = "#2b6cb0", "#2f855a", "#c53030"


def draw_objective(axes, history, bound=None) -> None:
    """Objective by step above the wide bound."""
    values = recorded(history, "objective")
    axes.plot(np.arange(1, len(values) + 1), values, color=BLUE, lw=1.8)
    dress(axes, "Objective", "mean over samples")
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


def draw_stationarity(axes, history, tol: float | None = None) -> None:
    """Worst stationarity by step, logarithmic."""
    from matplotlib.ticker import NullLocator

    values = recorded(history, "stationarity")
    shown = np.where(np.isfinite(values) & (values > 0), values, np.nan)
    axes.plot(np.arange(1, len(values) + 1), shown, color=INK, lw=1.4)
    axes.set_yscale("log")
    if tol and not np.isfinite(shown).any():
        axes.set_ylim(tol / 10, 10)
    dress(axes, "Distance from stationarity", "worst block; 0 is stationary")
    axes.set_xlabel("step", color=MUTED)
    axes.set_xlim(0, max(1, len(values)) * 1.02)
    axes.yaxis.set_minor_locator(NullLocator())
    if tol is not None:
        axes.axhline(tol, color=GREEN, lw=1.2, ls=(0, (4, 3)))
        axes.annotate(
            f"tolerance {tol:g}", (0.01, tol), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
            fontsize=9, color=GREEN,
        )  # fmt: skip


def recorded(history, name) -> np.ndarray:
    """The steps taken: the NaN padding at the end left off."""
    values = np.asarray(history[name] if isinstance(history, dict) else getattr(history, name), float)
    seen = np.flatnonzero(~np.isnan(values))
    return values[: seen[-1] + 1] if seen.size else values[:0]


def dress(axes, title: str, unit: str, grid: str = "y") -> None:
    """Title, unit and grid in the house's manner."""
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_ylabel(unit, color=MUTED)
    axes.grid(axis=grid, color=FAINT, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
