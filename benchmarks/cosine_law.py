"""C3's cosine law against solved dictionaries, over a grid of rho, q and lam: a table and a figure.

A parent (frequency .3) and a child, `rho = P(child | parent)`, `q = P(parent | child)`, over orthonormal truth with
activations of 1. The four patterns of activity are four samples whose weights are their probabilities, so that nothing
is left to chance. Each fit starts from the truth. Run `python benchmarks/cosine_law.py`; it writes `cosine_law.md` and
`cosine_law.png` beside itself.
"""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxdict as jd

jax.config.update("jax_enable_x64", True)
HERE = Path(__file__).parent
FREQUENCY = 0.3
RHOS, QS, LAMS = (0.2, 0.5, 0.8), (0.5, 0.8, 0.95, 1.0), (0.01, 0.05, 0.2)
PATTERNS = jnp.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])


def solve_grid(grid, offset):
    """Predicted and measured cosine of every (rho, q, lam), and each fit's worst stationarity."""
    rho, q, lam = jnp.asarray(grid).T
    both = FREQUENCY * rho
    weights = jnp.stack([both, FREQUENCY - both, both * (1 - q) / q, 1 - FREQUENCY - both * (1 - q) / q], axis=1)
    runs = len(grid)
    start = jd.Dictionary(jnp.tile(jnp.eye(2), (runs, 1, 1)), jnp.zeros((runs, 2)))
    problems = jd.Problem(lam=lam, offset=offset, weights=weights)
    solved = jd.fit_batch(problems, PATTERNS, keys=jax.random.split(jax.random.key(0), runs), start=start, tol=1e-9)
    law = jax.vmap(
        lambda lam, w: jd.conditions.predicted_cosine(PATTERNS, lam, offset=offset, varied=False, weights=w)[0, 1]
    )
    atoms = solved.dictionary.atoms
    cosines = jnp.sum(atoms[:, 0] * atoms[:, 1], axis=1)
    return np.asarray(law(lam, weights)), np.asarray(cosines), np.asarray(solved.certificate.stationarity.worst)


def table(grid, found):
    lines = ["| offset | rho | q | lam | predicted | measured | error | stationarity |", "|" + "---|" * 8]
    for offset, (predicted, measured, worst) in found.items():
        for (rho, q, lam), p, m, w in zip(grid, predicted, measured, worst, strict=True):
            error = f"{p - m:+.1e}" if np.isfinite(p) else ""
            lines.append(f"| {offset} | {rho} | {q} | {lam} | {p:.4f} | {m:.4f} | {error} | {w:.0e} |")
    return "\n".join(lines)


def where_it_breaks(found):
    """Median and largest error by size of the prediction, solved points only."""
    predicted, measured, worst = (np.concatenate([rows[k] for rows in found.values()]) for k in range(3))
    lines = ["| predicted | points | median error | largest error |", "|---|---|---|---|"]
    for low, high in ((0, 0.03), (0.03, 0.1), (0.1, 0.3), (0.3, 1), (1, np.inf)):
        inside = (np.abs(predicted) >= low) & (np.abs(predicted) < high) & (worst < 1e-6)
        error = np.abs(predicted - measured)[inside]
        if error.size:
            lines.append(f"| {low} to {high} | {error.size} | {np.median(error):.1e} | {error.max():.1e} |")
    diverged = measured[~np.isfinite(predicted) & (worst < 1e-6)]
    if diverged.size:
        lines.append(f"\nWhere q = 1 the law diverges; measured cosines {diverged.min():.3f} to {diverged.max():.3f}.")
    lines.append(f"{int((worst < 1e-6).sum())} of {worst.size} fits stationary within 1e-6.")
    return "\n".join(lines)


def figure(grid, found):
    picture = Figure(figsize=(9.6, 4.4), layout="constrained")
    lam = np.array([row[2] for row in grid])
    for panel, (offset, (predicted, measured, worst)) in zip(picture.subplots(1, 2), found.items(), strict=True):
        panel.plot([0, 1.05], [0, 1.05], color="#7b8794", lw=1, ls="--", label="law exact")
        for value, color in zip(LAMS, ("#2f855a", "#2b6cb0", "#c53030"), strict=True):
            shown = (lam == value) & np.isfinite(predicted) & (worst < 1e-6)
            panel.scatter(predicted[shown], measured[shown], s=26, color=color, label=f"lam = {value}")
        panel.set(xlabel="cosine predicted by the law (beyond 1.5 not shown)", ylabel="cosine of the solved atoms")
        panel.set_title(f"{offset} offset")
        panel.set(xlim=(0, 1.5), ylim=(0, 1.05))
        panel.legend(fontsize=8)
    picture.savefig(HERE / "cosine_law.png", dpi=90)


def main():
    grid = list(itertools.product(RHOS, QS, LAMS))
    found = {name: solve_grid(grid, name == "free") for name in ("free", "no")}
    text = f"# The cosine law against solved dictionaries\n\n{where_it_breaks(found)}\n\n{table(grid, found)}\n"
    (HERE / "cosine_law.md").write_text(text)
    figure(grid, found)
    print(text)


if __name__ == "__main__":
    main()
