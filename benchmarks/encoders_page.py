"""The tables and the figure of encoders.py, from its points alone."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Point:
    """One encoder on the curve."""

    family: str
    name: str
    matmuls: float  # multiply-adds a row over d K; nan where they depend on the row
    seconds: float  # CPU, a row
    value: float  # F
    excess: float  # over F of exact codes
    error: float
    squared: float
    active: float
    learned: int = 0
    training: float = 0.0  # CPU seconds
    f1: float = float("nan")  # of true features


def lines(title: str, points: list[Point], rows, sizes, beside: str):
    """One case as a section; `beside` says how its dictionary stands to a true one, if there is one."""
    depends = "" if rows.groups is None else f" of {len(np.unique(rows.groups))} chapters that were kept aside whole"
    least = next(point.value for point in points if point.family == "exact")
    yield (
        f"\n## {title}\n\n{len(rows.train):,} rows to train on, {len(rows.fresh):,} fresh ones{depends}; d = {rows.train.shape[1]}, "
        f"K = {sizes.n_atoms:,}, lam = {sizes.lam:g}; F of exact codes {least:.5f}; one matmul {1e6 * points[0].seconds:.2f} CPU us a row."
        f"{beside}\n"
    )
    more = "" if rows.truth is None else " F1 of true features |"
    yield (
        f"| encoder | matmuls | CPU us a row | F | above exact | % of exact | squared error | L0 | learned numbers | CPU s to learn |{more}"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|" + (more and "---|")
    for p in points:
        cost = f"{p.matmuls:.3g}" if np.isfinite(p.matmuls) else "-"
        trained = f"{p.learned:,} | {p.training:.0f}" if p.learned else "- | -"
        above = f"{p.excess:.5f} ± {p.error:.5f} | {100 * p.excess / least:.2f}"
        found = more and f" {p.f1:.3f} |"
        yield (
            f"| {p.name} | {cost} | {1e6 * p.seconds:.2f} | {p.value:.5f} | {above} | {p.squared:.4f} | {p.active:.1f} | {trained} |{found}"
        )


STYLES = {
    "SAE": ("#1f2933", "*"), "tied": ("#7b8794", "X"), "ISTA": ("#a0aec0", "v"), "FISTA": ("#b7791f", "^"),
    "FISTA, from the SAE": ("#dd6b20", "<"),
    "learned, from zero": ("#2b6cb0", "o"), "learned, from the SAE": ("#2f855a", "s"), "moves, from zero": ("#c53030", "D"),
    "moves, from the SAE": ("#d53f8c", "P"),
}  # fmt: skip


def figure(found, path: Path) -> None:
    """What is lost against both costs, a row a case."""
    picture = Figure(figsize=(11.5, 4.6 * len(found)), layout="constrained")
    grid = picture.subplots(len(found), 2, squeeze=False)
    for panels, (title, points) in zip(grid, found, strict=True):
        least = next(point.value for point in points if point.family == "exact")
        for panel, cost, label in zip(
            panels,
            (lambda p: p.matmuls, lambda p: 1e6 * p.seconds),
            ("multiply-adds a row, in matmuls", "CPU us a row"),
            strict=True,
        ):
            for family, (color, marker) in STYLES.items():
                own = [point for point in points if point.family == family]
                y = [max(100 * point.excess / least, 1e-3) for point in own]
                panel.plot([cost(point) for point in own], y, color=color, marker=marker, ms=7, lw=1.5, label=family)
            panel.set(xscale="log", yscale="log", xlabel=label, ylabel="F above exact codes, %", title=title)
            panel.grid(alpha=0.25)
        of_exact = [point for point in points if point.family.startswith("exact")]
        for point, style in zip(of_exact, ("-", "--", ":", "-."), strict=False):
            panels[1].axvline(1e6 * point.seconds, color="#1f2933", ls=style, lw=1.1, label=point.family)
        panels[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    picture.savefig(path, dpi=100)
