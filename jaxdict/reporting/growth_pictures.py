"""Growth as pictures, on matplotlib axes that are given: objectives against width, and the tree of splits."""

import numpy as np

from jaxdict.reporting.curves import BLUE, FAINT, GREEN, INK, MUTED, RED, dress

# Atoms beyond which a tree's leaves are not named.
MOST_NAMED = 80


def draw_path(axes, growth) -> None:
    """The objective on training rows and on rows kept aside, with the bounds of each below, against width."""
    widths = growth.widths
    axes.plot(
        widths, [step.objective for step in growth.steps], color=BLUE, marker="o", ms=3, lw=1.6, label="training rows"
    )
    fresh, error = (np.array([getattr(step, name) for step in growth.steps]) for name in ("fresh", "standard_error"))
    if np.isfinite(fresh).any():
        axes.errorbar(
            widths, fresh, 2 * error, color=RED, marker="o", ms=3, lw=1.6, label="rows kept aside, +- 2 errors"
        )
    for value, color, rows in (
        (growth.bound, BLUE, "these training rows"),
        (growth.fresh_bound, RED, "these rows kept aside"),
    ):
        if np.isfinite(value):
            axes.axhline(value, color=color, lw=1, ls=(0, (4, 3)), label=f"bound of {rows}, any width")
    axes.axvline(growth.steps[growth.best].width, color=GREEN, lw=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks(widths, [str(width) for width in widths])
    dress(axes, f"Objective by width; taken: {growth.steps[growth.best].width} atoms", "mean over rows")
    axes.set_xlabel("atoms", color=MUTED)
    axes.legend(fontsize=8, frameon=False)


def draw_tree(axes, growth, labels=None) -> None:
    """Atoms by the width at which they were born, a line each from there to where they end, below the one that they split off."""
    tree, steps = growth.tree, range(len(growth.steps))
    order = [atom for atom, _ in tree.walk()]
    height = {atom: place for place, atom in enumerate(order)}
    for atom in order:
        first, last = tree.born[atom], tree.ended[atom] if tree.ended[atom] >= 0 else len(steps) - 1
        axes.plot([first, last], [height[atom]] * 2, color=BLUE, lw=1.4, solid_capstyle="butt")
        if tree.parent[atom] >= 0:
            axes.plot([first, first], [height[int(tree.parent[atom])], height[atom]], color=FAINT, lw=0.9, zorder=0)
        if labels is not None and len(order) <= MOST_NAMED and len(labels[atom]):
            axes.annotate(", ".join(labels[atom]), (last, height[atom]), (5, 0), textcoords="offset points", va="center",
                          fontsize=7, color=INK)  # fmt: skip
    dress(
        axes,
        f"Splits: {len(tree.roots())} atoms of none, {len(order) - len(tree.roots())} split off others",
        "",
        grid="x",
    )
    axes.set_xticks(list(steps), [str(width) for width in growth.widths])
    axes.set_xlabel("atoms", color=MUTED)
    axes.set_yticks([])
    axes.invert_yaxis()
    axes.margins(x=0.25 if labels is not None else 0.05)
