"""Pictures of the conditions, on matplotlib axes that are given or made: nothing global changes, no display is needed.

Every function takes the axes to draw on (made if None) and returns them; `axes.figure.savefig("picture.png")` keeps the
picture. What is drawn is what `jaxdict.conditions` returns. matplotlib is an extra: `pip install "jaxdict[cli]"`.
"""

from typing import Any

import numpy as np
from jaxtyping import Array, Float

from jaxdict import conditions
from jaxdict.numerics import matmul
from jaxdict.objectives import residual as residual_of
from jaxdict.problem import Codes, Dictionary, Problem, canonical, dense_codes, metric_of
from jaxdict.reporting.curves import BLUE, FAINT, GREEN, INK, MUTED, RED, draw_objective, draw_stationarity
from jaxdict.reporting.growth_pictures import draw_path, draw_tree

DEFECT_COLORS = "RdBu_r"
LINES = (BLUE, "#b7791f", GREEN, RED, "#6b46c1", MUTED)


def hull(
    dictionary: Dictionary, codes: Codes, features=(0, 1), *, offset: bool = True, weights=None, names=None, axes=None
):
    """The pair condition of two features as a picture, both orders side by side; offset free (T6).

    Every sample is a point `ztilde = 1 - z / zbar`: 1 where a feature is off, below 1 where it is on, 0 at its mean. Left, the
    samples with the first feature off lie on the line `ztilde_i = 1`; their hull is the thick segment, and the point
    of cosines, `(1, G_ij)`, must lie in it. Right, the same with the features exchanged. For two features this is the
    hull condition (T5); among more, its projection. Samples of weight zero are left out.

    `names` are the two features' names. Returns the two axes; raises ValueError without an offset, where T6 has no segment.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> codes = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> axes = hull(jd.Dictionary(jnp.eye(2)), codes)  # doctest: +SKIP
    """
    if not offset:
        raise ValueError("offset=False has no segment to draw: without an offset T6 only asks for a sample (see pairs)")
    found = conditions.pairs(dictionary, codes, weights=weights)
    Z = np.asarray(dense_codes(canonical(dictionary, codes)[1], dictionary.atoms.shape[0]))
    Z = Z if weights is None else Z[np.asarray(weights) > 0]
    points = 1 - Z / np.asarray(found.means)
    names = [f"feature {k}" for k in features] if names is None else names
    axes = _axes(axes, (1, 2), (9.6, 4.9))
    for side, panel in enumerate(axes):
        (i, j), titles = (features, names) if side == 0 else (features[::-1], names[::-1])
        _hull_panel(panel, found, points, Z[:, i] == 0, i, j, side, titles)
    return axes


def _hull_panel(panel, found, points, is_off, i, j, side, names):
    """One order: feature i is off on the line where its own coordinate is 1."""
    first, second = (i, j) if side == 0 else (j, i)
    on_line = lambda values: (np.ones_like(values), values) if side == 0 else (values, np.ones_like(values))  # noqa: E731
    margin, cosine = float(found.margin[i, j]), float(found.cosine[i, j])
    ends = np.array([found.lower[i, j], found.upper[i, j]], float)
    ends = np.where(np.isfinite(ends), ends, np.nan)
    holds = margin >= -1e-9
    color = GREEN if holds else RED
    panel.scatter(points[~is_off, first], points[~is_off, second], s=9, color=FAINT, label=f"{names[0]} on")
    off_points = points[is_off]
    panel.scatter(off_points[:, first], off_points[:, second], s=14, color=BLUE, label=f"{names[0]} off", zorder=3)
    panel.plot(*on_line(ends), color=BLUE, lw=7, alpha=0.3, solid_capstyle="butt", label="their hull", zorder=2)
    panel.plot(
        *on_line(np.array([cosine])), marker="*", ms=17, ls="", color=color, mec="white", label="cosines", zorder=5
    )
    verdict = "inside: holds" if holds else f"outside by {-margin:.2f}: the loss falls"
    _dress(panel, f"Where {names[0]} is off\ncosine {cosine:.2f} in [{ends[0]:.2f}, {ends[1]:.2f}]? {verdict}", color)
    x, y = names if side == 0 else names[::-1]  # features[0] is always across
    panel.set_xlabel(f"1 - z / mean of {x}", color=MUTED)
    panel.set_ylabel(f"1 - z / mean of {y}", color=MUTED)
    panel.legend(loc="lower left", fontsize=8, frameon=True, framealpha=0.9, edgecolor=FAINT)


def barycentre_map(defect, *, names=None, limit: float | None = None, ax=None):
    """The (atoms, atoms) defect of `conditions.barycentre` as a map: white where the barycentre identity holds (T7).

    Row i, column j; colours run from `-limit` to `limit` (default: the largest defect, at least 1e-6); grey columns are dead features.

    >>> import numpy as np
    >>> ax = barycentre_map(np.zeros((2, 2)))  # doctest: +SKIP
    """
    defect = np.asarray(defect, float)
    worst = np.nanmax(np.abs(defect)) if np.isfinite(defect).any() else np.nan
    limit = max(1e-6, np.nan_to_num(worst)) if limit is None else limit
    ax = _axes(ax, (1, 1), (5.6, 4.8))
    ax.set_facecolor(FAINT)
    image = ax.imshow(defect, cmap=DEFECT_COLORS, vmin=-limit, vmax=limit, interpolation="nearest")
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.85)
    bar.set_label("defect", color=MUTED)
    bar.ax.tick_params(colors=MUTED, labelsize=9)
    bar.outline.set_visible(False)
    _dress(ax, f"Cosine that the residual predicts, minus the cosine\nlargest defect {worst:.1e}; stationary: 0", INK)
    ax.grid(False)
    ax.set_xlabel("feature j", color=MUTED)
    ax.set_ylabel("feature i", color=MUTED)
    if names is not None:
        ax.set_xticks(range(len(names)), names, rotation=45, ha="right")
        ax.set_yticks(range(len(names)), names)
    return ax


def residual_directions(
    problem: Problem,
    dictionary: Dictionary,
    codes: Codes,
    X: Float[Array, "samples d"],
    feature: int | None = None,
    *,
    u=None,
    names=None,
    axes=None,
):
    """What residuals still say about features (T9): left every feature's defect, right one feature's samples.

    Right, each sample with its code `z_k` and its residual along the direction `u` that attains the defect (or the
    one given): the two must have moment zero, and with a free offset no correlation. `feature` is the worst by default.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> point = jd.Dictionary(jnp.array([[1.0, 0.0]])), jnp.array([[1.5]])
    >>> axes = residual_directions(jd.Problem(lam=0.5, offset=False), *point, jnp.array([[2.0, 1.0]]))  # doctest: +SKIP
    """
    found = conditions.residual(problem, dictionary, codes, X)
    norms = np.asarray(found.norm, float)
    worst = int(np.nanargmax(norms)) if np.isfinite(norms).any() else 0
    feature = worst if feature is None else feature
    name = (lambda k: f"feature {k}") if names is None else (lambda k: names[k])
    left, right = _axes(axes, (1, 2), (9.6, 4.2))
    left.bar(
        range(len(norms)), np.nan_to_num(norms), color=[BLUE if k == feature else FAINT for k in range(len(norms))]
    )
    _dress(left, f"Residual that each feature still predicts\nlargest {np.nanmax(norms):.1e}; stationary: 0", INK)
    left.set_xlabel("feature", color=MUTED)
    left.set_ylabel("norm, in units of lam times the mean code", color=MUTED)
    if names is not None:
        left.set_xticks(range(len(names)), names)
    _residual_panel(right, problem, dictionary, codes, X, feature, found.direction[feature] if u is None else u, name)
    return np.array([left, right])


def _residual_panel(panel, problem, dictionary, codes, X: Float[Array, "samples d"], feature, u, name):
    mop_up = conditions.mop_up(problem, dictionary, codes, X, feature, u)
    unit, codes = canonical(dictionary, codes)
    r = residual_of(unit, codes, X)
    along = np.asarray(matmul(metric_of(problem, r) * r, mop_up.u))
    z = np.asarray(dense_codes(codes, unit.atoms.shape[0]))[:, feature]
    panel.axhline(0, color=MUTED, lw=1)
    panel.scatter(z, along, s=12, color=BLUE, alpha=0.6, lw=0)
    if problem.offset:
        what, value = "covariance", float(mop_up.covariance)
    else:
        what, value = "moment", float(mop_up.moment)
    settled = abs(value) <= 1e-6 * max(1e-30, float(problem.lam) * float(mop_up.mean_code)) or abs(value) < 1e-9
    verdict = "0, nothing to mop up" if settled else f"{value:.1e}: turning the atom lowers the loss"
    _dress(panel, f"{name(feature)} against what it leaves along u\n{what} {verdict}", GREEN if settled else RED)
    panel.set_xlabel(f"code of {name(feature)}", color=MUTED)
    panel.set_ylabel("residual along u", color=MUTED)


def convergence(history, *, bound=None, tol: float | None = None, axes=None):
    """A fit's way down: objective above its wide bound, and distance from stationarity, by step.

    `history` is a Solution's, `bound` its `certificate.wide_bound`, below which no dictionary of any width goes (T11).

    >>> from types import SimpleNamespace
    >>> axes = convergence(SimpleNamespace(objective=[2.0, 1.0], stationarity=[1.0, 0.1]))  # doctest: +SKIP
    """
    upper, lower = _axes(axes, (2, 1), (6.4, 5.4))
    draw_objective(upper, history, bound)
    draw_stationarity(lower, history, tol)
    return np.array([upper, lower])


def antipodal_pairs(
    dictionary: Dictionary, codes: Codes, *, cosine: float = -0.9, coverage: float = 0.5, weights=None, names=None,
    top: int = 8, ax=None,
):  # fmt: skip
    """All pairs of atoms by cosine and by how many samples they cover: permanent ones lie top left (T14).

    In the shaded corner a pair is opposite, `cosine` or below, and dense, on in more than a share `coverage` of samples.
    The `top` antipodal pairs of widest coverage are named.

    >>> import jax.numpy as jnp, jaxdict as jd
    >>> codes = jnp.array([[1.5, 0.0], [0.0, 0.5]])
    >>> ax = antipodal_pairs(jd.Dictionary(jnp.array([[1.0], [-1.0]])), codes)  # doctest: +SKIP
    """
    found = conditions.antipodal(dictionary, codes, weights=weights, cosine=cosine, coverage=coverage)
    i, j = np.triu_indices(dictionary.atoms.shape[0], 1)
    cosines, covered, dense, flagged = (
        np.asarray(array)[i, j] for array in (found.cosine, found.coverage, found.dense, found.flagged)
    )
    ax = _axes(ax, (1, 1), (6.4, 4.6))
    ax.fill_between([-1.08, cosine], coverage, 1.06, color=RED, alpha=0.08, lw=0)
    ax.annotate("dense and opposite", (-1.06, coverage), (0, 4), textcoords="offset points", fontsize=8, color=RED)
    ax.scatter(cosines, covered, s=22, color=np.where(dense, RED, np.where(flagged, BLUE, MUTED)), alpha=0.8, lw=0)
    for first, second, angle, share in found.candidates(top):
        label = f"{first}, {second}" if names is None else f"{names[first]}, {names[second]}"
        ax.annotate(label, (angle, share), (7, 0), textcoords="offset points", va="center", fontsize=9, color=INK)
    n_dense, n_opposite = int(dense.sum()), int(flagged.sum())
    _dress(ax, f"Opposite atoms: {n_opposite} of {len(i)} pairs, {n_dense} of them dense", INK)
    ax.set_xlim(-1.08, 1.08)
    ax.set_ylim(-0.03, 1.06)
    ax.set_xlabel("cosine of the two atoms", color=MUTED)
    ax.set_ylabel("share of samples with either on", color=MUTED)
    return ax


def sweep_figure(rows, *, axes=None):
    """A sweep's rows against lam: objective, L0, explained variance, stationarity; a line for each data set and width.

    Every run is a point, lines go through the means over seeds. `rows` are those of `jaxdict.sweep` (dictionaries with `lam`,
    `n_atoms`, `data`, ...). Returns the four axes.

    >>> row = {"data": "a", "n_atoms": 4, "lam": 0.1, "objective": 1.0, "l0": 2.0, "explained_variance": 0.9}
    >>> axes = sweep_figure([row | {"stationarity": 1e-7}])  # doctest: +SKIP
    """
    panels = np.ravel(_axes(axes, (2, 2), (9.6, 6.4)))
    shown = {
        "objective": ("Objective", "mean over samples", "linear"),
        "l0": ("Active atoms a sample", "L0", "linear"),
        "explained_variance": ("Explained variance", "share", "linear"),
        "stationarity": ("Distance from stationarity", "worst block", "log"),
    }
    kept = [row for row in rows if row.get("objective") is not None]
    lines = sorted({(row["data"], row["n_atoms"]) for row in kept}, key=str)
    several = len({name for name, _ in lines}) > 1
    for panel, (name, (title, label, scale)) in zip(panels, shown.items(), strict=True):
        for place, (data, width) in enumerate(lines):
            mine = [row for row in kept if (row["data"], row["n_atoms"]) == (data, width) and row[name] is not None]
            lams = sorted({row["lam"] for row in mine})
            means = [np.mean([row[name] for row in mine if row["lam"] == lam]) for lam in lams]
            color = LINES[place % len(LINES)]
            panel.plot(
                lams, means, color=color, lw=1.8, label=f"{data}, {width} atoms" if several else f"{width} atoms"
            )
            panel.scatter([row["lam"] for row in mine], [row[name] for row in mine], s=14, color=color, alpha=0.6, lw=0)
        panel.set_xscale("log")
        panel.set_yscale(scale)
        panel.set_xlabel("lam", color=MUTED)
        panel.set_ylabel(label, color=MUTED)
        _dress(panel, title, INK)
    if lines:
        panels[0].legend(fontsize=8, frameon=False)
    return panels


def growth_figure(growth, labels=None, *, axes=None):
    """A `jaxdict.Growth`: objectives by width above their bounds (T11, T19), and the tree of splits with the atoms' labels.

    >>> import jaxdict as jd
    >>> axes = growth_figure(jd.grow(jd.Problem(lam=0.1), X, (1, 2), key=key))  # doctest: +SKIP
    """
    left, right = _axes(axes, (1, 2), (11.5, 5.2))
    draw_path(left, growth)
    draw_tree(right, growth, labels)
    return np.array([left, right])


def _axes(axes, shape, size) -> Any:
    """The axes given, or new ones of a figure of their own."""
    if axes is not None:
        return axes
    try:
        from matplotlib.figure import Figure
    except ImportError as missing:
        raise ImportError('plots need matplotlib: pip install "jaxdict[cli]"') from missing
    return Figure(figsize=size, layout="constrained").subplots(*shape)


def _dress(panel, title, color):
    panel.set_title(title, loc="left", fontsize=10.5, color=color)
    panel.grid(color=FAINT, lw=0.8, alpha=0.6)
    panel.set_axisbelow(True)
    panel.tick_params(colors=MUTED, labelsize=9)
    for side, spine in panel.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
