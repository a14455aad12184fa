"""How an optimum refines its categories as it grows: objective, L0, depth of splits and rows with an atom of their own, by width.

    python benchmarks/refinement.py [--data rays position tree real dense] [--seeds 3] [--out benchmarks/refinement.md]

`jaxdict.grow` without rows kept aside, on rows for which the wide limit is known or not: a few rays (T13: splitting stops at their number),
rows in general position (T13: one atom a row), a planted tree of three levels with noise, tokens of MiniLM, and a dense direction beside
sparse features (T14 speaks of one dimension only). Of each width: how much of the way from no atoms down to T11's bound is left,
active atoms a row, mean number of splits that an atom came of, share of rows with an atom that no other row uses. Of the dense direction:
the atoms along it, and the share of rows that use one. Then the trees of some seeds beside one another (`jaxdict.growth.tree_stability`).
Writes a table, a picture beside it, and what they say.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

import jaxdict as jd

# An atom within this cosine of the dense direction, or of its opposite, is along it.
ALONG = 0.9


@dataclass(frozen=True)
class Case:
    """Rows, the problem and the widths to go through; `dense` is a direction to follow."""

    title: str
    colour: str
    problem: jd.Problem
    widths: tuple[int, ...]
    rows: Callable  # key -> (X, the dense direction or None)
    tol: float


def on_rays(key, n: int = 200, n_rays: int = 8, d: int = 4):
    """Each row on one of a few rays."""
    return np.asarray(jd.synthetic.rays(key, n, n_rays, d).X), None


def in_general_position(key, n: int = 24, d: int = 8):
    """Rows of length one, no two on a ray."""
    X = np.asarray(jax.random.normal(key, (n, d)))
    return X / np.linalg.norm(X, axis=1, keepdims=True), None


def of_a_tree(key, n: int = 400, d: int = 24, noise: float = 0.05):
    """Each row is one of eight leaves: `normalise(root + .7 branch + .5 leaf)` of an orthonormal basis, two children each, with noise."""
    draw = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    basis = np.linalg.qr(draw.normal(size=(d, d)))[0]
    leaves = np.arange(8)
    atoms = basis[leaves // 4] + 0.7 * basis[2 + leaves // 2] + 0.5 * basis[6 + leaves]
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    rows = draw.uniform(1, 2, (n, 1)) * atoms[draw.integers(0, 8, n)]
    return rows + noise * draw.normal(size=(n, d)), None


def of_tokens(key, n: int = 1000):
    """Tokens of MiniLM, centred, their mean square one."""
    stored = jd.datasets.load("minilm_tokens").X
    X = np.asarray(stored[np.sort(np.asarray(jax.random.permutation(key, len(stored)))[:n])], float)
    X = X - X.mean(0)
    return X / np.sqrt((X**2).sum(1).mean()), None


def with_a_dense_direction(key, n: int = 400):
    """A normal variable along one direction in all rows, six sparse features beside it."""
    found = jd.synthetic.dense_direction(key, n, 6, noise=0.02)
    return np.asarray(found.X), np.asarray(found.dictionary.atoms[0])


def plain(lam: float) -> jd.Problem:
    return jd.Problem(lam=lam, offset=False)


CASES = {
    "rays": Case("8 rays, 200 rows", "#2b6cb0", plain(0.1), (1, 2, 4, 8, 16), on_rays, 1e-5),
    "position": Case("general position, 24 rows", "#2f855a", plain(0.1), (2, 4, 8, 16, 32), in_general_position, 1e-5),
    "tree": Case("tree of 8 leaves, 400 rows", "#b7791f", plain(0.1), (2, 4, 8, 16, 32), of_a_tree, 1e-3),
    "real": Case("MiniLM, 1,000 rows", "#c53030", jd.Problem(lam=0.2), (4, 8, 16, 32, 64), of_tokens, 1e-2),
    "dense": Case("dense direction, 400 rows", "#6b46c1", plain(0.1), (2, 4, 8, 16, 32), with_a_dense_direction, 1e-3),
}  # fmt: skip


def measured(case: Case, seed: int) -> tuple[jd.growth.Growth, list[dict]]:
    """A path on the same rows with the luck of a seed, and a row a width."""
    X, dense = case.rows(jax.random.key(0))
    options = {"key": jax.random.key(100 + seed), "held_out": 0, "tol": case.tol, "rough": max(0.05, case.tol)}
    grown = jd.grow(case.problem, X, case.widths, **options)
    centred = X - X.mean(0) if case.problem.offset else X
    none = 0.5 * float((centred**2).sum(1).mean())
    table = []
    for place, step in enumerate(grown.steps):
        told = {
            "width": step.width,
            "objective": step.objective,
            "left": (step.objective - grown.bound) / (none - grown.bound),
            "l0": step.l0,
            "depth": float(np.mean(grown.tree.depth(place))),
            "own": step.own,
        }
        table.append(told if dense is None else told | along(case.problem, step.dictionary, X, dense))
    return grown, table


def along(problem: jd.Problem, dictionary, X, dense) -> dict:
    """Atoms along a direction and its opposite: how many, the nearest of each, and the share of rows that use one."""
    cosines = np.asarray(dictionary.atoms) @ dense
    codes = np.asarray(jd.encode(problem, dictionary, X).codes)
    mine = np.abs(cosines) >= ALONG
    return {
        "atoms": int(mine.sum()),
        "plus": float(cosines.max()),
        "minus": float(-cosines.min()),
        "covered": float(np.mean((codes[:, mine] > 0).any(axis=1))),
    }


def lines(case: Case, grown, table):
    yield f"\n## {case.title}, lam = {float(case.problem.lam):g}"
    yield f"\n{grown.message()}\n"
    dense = "atoms" in table[0]
    yield "| atoms | objective | left of the way | L0 | splits | own rows |" + (
        " along | cosine + | cosine - | rows |" if dense else ""
    )
    yield "|" + " --- |" * (10 if dense else 6)
    for row in table:
        cells = [
            f"{row['width']}",
            f"{row['objective']:.5f}",
            f"{row['left']:.2g}",
            f"{row['l0']:.2f}",
            f"{row['depth']:.2f}",
            f"{row['own']:.1%}",
        ]
        if dense:
            cells += [f"{row['atoms']}", f"{row['plus']:.3f}", f"{row['minus']:.3f}", f"{row['covered']:.0%}"]
        yield "| " + " | ".join(cells) + " |"


PANELS = (
    ("left", "Left of the way down to T11's bound", "of the fall from no atoms"),
    ("l0", "L0", "active atoms a row"),
    ("depth", "Splits", "that an atom came of, mean"),
    ("own", "Rows with an atom of their own", "share"),
    ("covered", "Atoms along the dense direction", "cosine; share of rows that use one"),
)
# Of the dense direction e.
FOLLOWED = ("plus", "-", "nearest to +e"), ("minus", "--", "nearest to -e"), ("covered", ":", "rows")


def figure(found: dict, path: Path) -> None:
    picture = Figure(figsize=(12.5, 7), layout="constrained")
    panels = picture.subplots(2, 3).ravel()
    for panel, (name, title, unit) in zip(panels, PANELS, strict=False):
        for key, (_, table) in found.items():
            case, widths = CASES[key], [row["width"] for row in table]
            if name != "covered":
                panel.plot(widths, [row[name] for row in table], color=case.colour, marker="o", ms=4, lw=1.6)
            elif "covered" in table[0]:
                for field, style, label in FOLLOWED:
                    values = [row[field] for row in table]
                    panel.plot(widths, values, color=case.colour, ls=style, marker="o", ms=4, lw=1.6, label=label)
                panel.legend(fontsize=8, frameon=False)
        panel.set_xscale("log", base=2)
        panel.set_title(title, loc="left", fontsize=11)
        panel.set(xlabel="atoms", ylabel=unit)
        panel.grid(alpha=0.25)
    for key in found:
        panels[-1].plot([], [], color=CASES[key].colour, marker="o", ms=4, lw=1.6, label=CASES[key].title)
    panels[-1].legend(loc="center left", frameon=False, fontsize=10)
    panels[-1].set_axis_off()
    picture.savefig(path, dpi=90)


def main(given=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--seeds", type=int, default=3, help="whose trees are compared, of the tree and the tokens")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    asked = parser.parse_args(given)
    jax.config.update("jax_enable_x64", True)
    began, found, text = time.process_time(), {}, []
    for name in asked.data:
        found[name] = measured(CASES[name], 0)
        text += lines(CASES[name], *found[name])
        if name in ("tree", "real") and asked.seeds > 1:
            others = [measured(CASES[name], seed)[0] for seed in range(1, asked.seeds)]
            stable = jd.growth.tree_stability([found[name][0], *others])
            text.append(f"\nTrees of {asked.seeds} seeds: {stable.message()}.")
        print("\n".join(text), flush=True)
    head = (
        f"# Refinement\n\n`python benchmarks/refinement.py`, {time.strftime('%Y-%m-%d')}, float64; "
        f"{time.process_time() - began:.0f} CPU seconds in all.\n\n![The curves by width]({asked.out.with_suffix('.png').name})"
    )
    asked.out.write_text("\n".join([head, *text]) + "\n")
    figure(found, asked.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
