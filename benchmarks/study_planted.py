"""Planted hierarchies: what training reaches of what optimality says of parents and children, architecture by architecture.

    python benchmarks/study_planted.py [--seeds 3] [--steps 2000] [--rows 50000] [--out FILE.md]

Trees of a parent and two children that are on only with it, beside roots without children; P(child | parent) at three levels, magnitudes
uniform or, once, constant (where L0 gains by absorbing, T21). Every architecture is trained with as many latents as there are features,
to the planted number of active features a row (lam is searched for where there is one), from several seeds. Latents are matched to
features by the rows on which they are on, on fresh rows: a child's latent is the one whose rows agree best (F1) with the child's; the
parent's is the one, other than this, that agrees best where no child is on. Told are means over trees with the standard error over trees
(seeds averaged):

- absorbed: P(parent's latent on | parent, no child) - P(parent's latent on | parent, child), 1 where the child silences its parent;
- the cosine of the two latents' atoms, and that of the child's latent with the parent's planted atom;
- T21: how often the child's latent is on only with its parent's, the cosine at the end of the interval that is left open, and how far the
  cosine differs between seeds.

Beside them stands the certified local optimum of problem P itself, at the lam of the standard SAE. Then T23: parents so many times as
large as their children, a p-annealed SAE, the cosine of its pairs beside the one that the penalty holds (from the planted codes alone).
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np

import jaxdict as jd
from jaxdict.sae.trainers import Matryoshka
from jaxdict.sae.trainers.asking import ARCHITECTURES
from jaxdict.sae.trainers.asking import KINDS as ALL_KINDS

TREES, ROOTS, D = 8, 8, 64
PARENTS = jd.synthetic.tree(TREES, 2, 1) + (-1,) * ROOTS
EDGES = [(parent, child) for child, parent in enumerate(PARENTS) if parent >= 0]
FREQUENCY, NOISE = 0.15, 0.01
CASES = {"0.1": (0.1, "uniform"), "0.3": (0.3, "uniform"), "0.6": (0.6, "uniform"), "0.3, constant": (0.3, "constant")}
RATIOS = (2, 4, 8)
# Pairs of which both latents agree with their feature on as many rows (F1) are told of under T23, which speaks of those alone.
KNOWN = 0.9
FIRST = sum(parent < 0 for parent in PARENTS)  # features without a parent: a Matryoshka's first prefix
POWER = 0.2
LAMS = {"standard": (0.02, 0.5), "gated": (0.05, 2), "p_anneal": (0.005, 0.3), "jumprelu": (0.001, 0.3)}
# Groups as planted for the Matryoshka.
KINDS = ALL_KINDS | {"matryoshka": partial(Matryoshka, group_sizes=(FIRST, len(PARENTS) - FIRST))}


def drawn(seed: int, n: int, level: float, magnitudes: str, ratio: float = 1.0):
    """Training rows, fresh rows, the codes of these and the atoms, float32; parents (features with children) `ratio` times as large."""
    options = {"frequency": FREQUENCY, "rho": level, "magnitudes": magnitudes}
    found = jd.synthetic.hierarchy(jax.random.key(seed), n + 8192, PARENTS, D, **options)
    size = np.ones(len(PARENTS), np.float32)
    size[[parent for parent, _ in EDGES]] = ratio
    codes, atoms = np.asarray(found.codes, np.float32) * size, np.asarray(found.dictionary.atoms, np.float32)
    X = codes @ atoms + NOISE * np.random.default_rng(seed).normal(size=(len(codes), D)).astype(np.float32)
    return X[:n], X[n:], codes[n:], atoms


def active(sae, X) -> float:
    return float(np.mean(np.sum(np.asarray(sae.encode(X)) != 0, axis=1)))


def trained(name: str, X, fresh, wanted: float, seeds: int, steps: int):
    """SAEs of one architecture, a seed each, at about the wanted number of active features; what was asked of them."""
    kind = KINDS[name]()
    ask = partial(jd.sae.train_batch, X, len(PARENTS), architecture=kind, steps=steps)
    if kind.counts:
        k = round(wanted) if kind.whole else wanted
        return ask(keys=jax.random.split(jax.random.key(1), seeds), k=k), k
    low, high = LAMS[name]
    for _ in range(2):  # two grids, the second around the best of the first
        lams = np.geomspace(low, high, 6)
        found = ask(keys=jax.random.split(jax.random.key(0), len(lams)), lam=lams)
        distance = [abs(np.log(max(active(sae, fresh), 1e-3) / wanted)) for sae in found]
        best = int(np.argmin(distance))
        low, high = lams[max(best - 1, 0)], lams[min(best + 1, len(lams) - 1)]
    lam = float(lams[best])
    return ask(keys=jax.random.split(jax.random.key(1), seeds), lam=np.full(seeds, lam)), lam


def latents_of(codes, truth):
    """For each edge the latents that stand for parent and child: (edges,) each, and their F1."""
    on, there = codes > 0, truth > 0

    def f1(rows, feature):
        both = on[rows].T.astype(np.float32) @ there[rows, feature].astype(np.float32)
        return 2 * both / np.maximum(on[rows].sum(0) + there[rows, feature].sum(), 1)

    found = []
    for parent, child in EDGES:
        siblings = [c for p, c in EDGES if p == parent]
        scores = f1(slice(None), child)
        j = int(np.argmax(scores))
        alone = f1(~there[:, siblings].any(1), parent)
        alone[j] = -1
        i = int(np.argmax(alone))
        found.append((i, j, alone[i], scores[j]))
    i, j, of_parent, of_child = map(np.array, zip(*found, strict=True))
    return i, j, of_parent, of_child


def absorbed(codes, truth, i) -> np.ndarray:
    """By edge, what the child takes of its parent's latent."""
    found = []
    for (parent, child), latent in zip(EDGES, i, strict=True):
        siblings = [c for p, c in EDGES if p == parent]
        on, there = codes[:, latent] > 0, truth > 0
        alone = there[:, parent] & ~there[:, siblings].any(1)
        found.append(on[alone].mean() - on[there[:, parent] & there[:, child]].mean())
    return np.array(found)


def held_cosine(z_i, z_j, cosine: float) -> float:
    """T23's cosine of a planted pair, from its true codes and atoms alone: NaN where no such point is, so that the pair merges.

    Along T21's path `z_i + a z_j, d_j - a d_i` the pair has the cosine (G - a) / n and the child the code n z_j, `n = ||d_j - a d_i||`;
    the penalty holds it at the a where that is `E[rho'(z_i + a z_j) z_j] / E[rho'(n z_j) z_j]`, rho' = z^(p - 1), n z_j in both means.
    """
    on = z_j > 0
    z_i, z_j = z_i[on], z_j[on]
    steps = np.linspace(cosine, -float(np.min(z_i / z_j)) * (1 - 1e-3), 4000)
    lengths = np.sqrt((1 - cosine**2) + (cosine - steps) ** 2)
    have = (cosine - steps) / lengths
    held = np.array(
        [
            np.mean((z_i + a * z_j) ** (POWER - 1) * z_j) / np.mean((n * z_j) ** (POWER - 1) * z_j)
            for a, n in zip(steps, lengths, strict=True)
        ]
    )
    crossed = np.flatnonzero(held <= have)
    return float(have[crossed[0]]) if len(crossed) else float("nan")


def measured(dictionary, codes, truth, atoms) -> dict[str, np.ndarray]:
    """All figures by edge, of a dictionary of unit atoms and its codes of fresh rows."""
    units = np.asarray(dictionary.atoms)
    i, j, of_parent, of_child = latents_of(codes, truth)
    flat = jd.conditions.flat_pairs(dictionary, codes, i, j)
    parents = np.array([parent for parent, _ in EDGES])
    return {
        "absorbed": absorbed(codes, truth, i), "cosine": np.sum(units[i] * units[j], axis=1),
        "parent_in_child": np.sum(units[j] * atoms[parents], axis=1), "inside": np.asarray(flat.share),
        "end": np.asarray(flat.absorbed),
        "f1_parent": of_parent, "f1_child": of_child,
    }  # fmt: skip


def one_case(level: float, magnitudes: str, given) -> dict:
    """Every architecture at one level of co-occurrence: figures (seeds, edges)."""
    X, fresh, truth, atoms = drawn(0, given.rows, level, magnitudes)
    wanted = float(np.mean(np.sum(truth > 0, axis=1)))
    told: dict = {}
    for name in given.architectures:
        begin = time.process_time()
        saes, asked = trained(name, X, fresh, wanted, given.seeds, given.steps)
        codes = [np.asarray(sae.encode(fresh)) for sae in saes]
        each = [measured(sae.dictionary, f, truth, atoms) for sae, f in zip(saes, codes, strict=True)]
        l0 = float(np.mean([np.mean(np.sum(f != 0, axis=1)) for f in codes]))
        error = float(np.mean([np.mean(np.sum((fresh - np.asarray(sae(fresh))) ** 2, axis=1)) for sae in saes]))
        told[name] = {"asked": asked, "l0": l0, "error": error, "cpu": time.process_time() - begin}
        told[name] |= {key: np.stack([one[key] for one in each]) for key in each[0]}
        if name == "standard":
            told["optimum of P"] = optimum(asked, X, fresh, truth, atoms)
        print(f"{level:g} {magnitudes}, {name}: asked {asked:.4g}, L0 {l0:.2f} of {wanted:.2f}, error {error:.4f}, "
              f"absorbed {told[name]['absorbed'].mean():.3f}, cosine {told[name]['cosine'].mean():.3f}", flush=True)  # fmt: skip
    return {"wanted": wanted, "told": told}


def optimum(lam: float, X, fresh, truth, atoms) -> dict:
    """The same of a certified point of problem P."""
    problem = jd.Problem(lam=lam)
    found = jd.fit(problem, X, len(PARENTS), key=jax.random.key(0), tol=1e-3)
    codes = np.asarray(jd.encode(problem, found.dictionary, fresh).codes)
    r = fresh - codes @ np.asarray(found.dictionary.atoms) - np.asarray(found.dictionary.offset)
    figures = measured(found.dictionary, codes, truth, atoms)
    facts = {"asked": lam, "l0": float(np.mean(np.sum(codes > 0, axis=1))), "error": float(np.mean(np.sum(r * r, 1)))}
    return facts | {key: value[None] for key, value in figures.items()} | {"status": found.message()}


def held_pairs(ratio: float, given) -> dict:
    """T23: a p-annealed SAE where parents are so many times as large as their children, and what holds its pairs."""
    X, fresh, truth, atoms = drawn(0, given.rows, 0.3, "uniform", ratio)
    saes, asked = trained("p_anneal", X, fresh, float(np.mean(np.sum(truth > 0, axis=1))), given.seeds, 2 * given.steps)
    each = []
    for sae in saes:
        dictionary = sae.dictionary
        each.append(measured(dictionary, np.asarray(sae.encode(fresh)), truth, atoms))
    held = [held_cosine(truth[:, i], truth[:, j], float(atoms[i] @ atoms[j])) for i, j in EDGES]
    found = {"asked": asked, "l0": float(np.mean([active(sae, fresh) for sae in saes])), "held": np.array(held)[None]}
    found |= {key: np.stack([one[key] for one in each]) for key in ("cosine", "absorbed", "inside")}
    found["known"] = np.stack([np.minimum(one["f1_parent"], one["f1_child"]) > KNOWN for one in each])
    print(
        f"T23, parents {ratio:g} times as large: cosine {both(found['cosine'])}, held {both(found['held'])}", flush=True
    )
    return found


def over_trees(values) -> tuple[float, float]:
    """Mean and standard error over trees of figures (seeds, edges); edges that have none are left out."""
    owner = np.array([parent for parent, _ in EDGES])
    of_trees = [values[:, owner == tree] for tree in np.unique(owner)]
    trees = np.array([np.nanmean(one) for one in of_trees if np.isfinite(one).any()])
    if len(trees) < 2:
        return float("nan"), float("nan")
    return float(trees.mean()), float(trees.std(ddof=1) / np.sqrt(len(trees)))


def both(values) -> str:
    mean, error = over_trees(np.asarray(values, float))
    return f"{mean:.3f} +- {error:.3f}" if np.isfinite(mean) else "-"


def report(found: dict, held: dict, given) -> str:
    lines = [
        "# Planted hierarchies", "", f"`python benchmarks/study_planted.py`: {TREES} parents with two children each and {ROOTS} features "
        f"alone, d = {D}, {len(PARENTS)} latents, {given.rows:,} rows, {given.steps} steps of 1,024, {given.seeds} seeds; parents' "
        f"frequency {FREQUENCY:g}, noise {NOISE:g} a coordinate. Fresh rows; means over trees, standard error over the {TREES} trees.", "",
    ]  # fmt: skip
    for case, one in found.items():
        lines += [
            f"## P(child | parent) = {case}: {one['wanted']:.2f} features on a row", "",
            "| | lam or k | L0 | error | absorbed | cosine of the pair | parent in the child's atom | child inside parent | "
            "cosine at the open end (T21) | spread over seeds |", "|" + " --- |" * 10,
        ]  # fmt: skip
        for name, told in one["told"].items():
            spread = np.std(told["cosine"], axis=0, ddof=1) if len(told["cosine"]) > 1 else np.full(len(EDGES), np.nan)
            figures = (
                told["absorbed"],
                told["cosine"],
                told["parent_in_child"],
                told["inside"],
                told["end"],
                spread[None],
            )
            cells = [f"{told['asked']:.3g}", f"{told['l0']:.2f}", f"{told['error']:.4f}", *map(both, figures)]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        told = one["told"]
        if {"matryoshka", "batchtopk"} <= set(told):
            gain = told["batchtopk"]["absorbed"] - told["matryoshka"]["absorbed"]
            lines += ["", f"Batch top-k's absorption less Matryoshka's at equal k: {both(gain)}."]
        lines.append("")
    if held:
        lines += [
            "## T23: pairs held by an annealed penalty", "", "P(child | parent) = 0.3, uniform magnitudes; the cosine at which sum z^0.2 "
            "holds a pair is computed from planted codes and atoms alone. Pairs found: both latents with an F1 above "
            f"{KNOWN:g}, twice the steps.", "",
            "| parent / child | lam | L0 | pairs found | cosine of the pair | held at | difference | largest of a pair | absorbed |",
            "|" + " --- |" * 9,
        ]  # fmt: skip
    for ratio, one in held.items():
        known = [
            np.where(one["known"], value, np.nan) for value in (one["cosine"], one["held"], one["cosine"] - one["held"])
        ]
        largest = np.nanmax(np.abs(known[2])) if np.isfinite(known[2]).any() else float("nan")
        cells = [
            f"{one['asked']:.3g}",
            f"{one['l0']:.2f}",
            f"{one['known'].mean():.0%}",
            *map(both, known),
            f"{largest:.3f}",
        ]
        lines.append(f"| {ratio} | {' | '.join(cells)} | {both(one['absorbed'])} |")
    return "\n".join(lines) + "\n"


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--architectures", nargs="*", default=list(ARCHITECTURES), choices=ARCHITECTURES)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument(
        "--ratios", nargs="*", type=float, default=list(RATIOS), help="parents' size over their children's, for T23"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    given = parser.parse_args(argv)
    held = {f"{ratio:g}": held_pairs(ratio, given) for ratio in given.ratios}
    found = {case: one_case(*CASES[case], given) for case in given.cases}
    text = report(found, held, given)
    given.out.write_text(text)
    kept = {"cases": found, "held": held, "edges": EDGES}
    given.out.with_suffix(".json").write_text(
        json.dumps(kept, default=lambda array: np.round(np.asarray(array, float), 4).tolist()) + "\n"
    )
    print(text)


if __name__ == "__main__":
    main()
