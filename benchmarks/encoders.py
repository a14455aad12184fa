"""Between one matmul and exact codes: what each encoder's codes lose on fresh rows, against what they cost.

    python benchmarks/encoders.py [--cases minilm planted wide] [--out benchmarks/encoders.md]

An SAE is trained on problem P's loss (`jd.sae.train`), and its own decoder is the dictionary of all encoders: the SAE, its tied form,
ISTA and FISTA cut short, the same steps with learned numbers (`jd.sae.train_unrolled`, on the SAE's training rows), from zero and from
the SAE's codes, moves of single codes, exact codes from a cold start and from others. F above that of exact codes is a mean over
rows that nothing was trained on, with the standard error of paired differences (over documents where rows have any). Costs are
multiply-adds a row in units of one matmul, d K of them, and CPU seconds of the process, the least of some calls after a first one, in
float32, over the fresh rows again and again. The moves' Gram matrix and the untrained steps' 1 / L are of the dictionary alone and are
not counted. Planted rows have a true dictionary: there each line also says how well its codes name the true features that are on
(`f1_of`). Writes a table and a figure.
"""

import argparse
import platform
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from encoders_page import Point, figure, lines

import jaxdict as jd
from jaxdict.encoding.exact import ROUNDING, SOLVED
from jaxdict.numerics import unit_rows
from jaxdict.objectives import sample_objectives
from jaxdict.population.comparisons import numbered, paired
from jaxdict.recovery.benchmarks import nearest_features
from jaxdict.synthetic import Planted

REPEATS, TIMED_ROWS = 3, 2048
TOL = 1e-6


@dataclass(frozen=True)
class Sizes:
    """What is trained, and which encoders are measured."""

    n_atoms: int
    lam: float
    sae_steps: int = 1000
    steps: int = 80
    batch_size: int = 128
    depths: tuple[int, ...] = (1, 2, 4, 8, 16)
    moves: tuple[int, ...] = (4, 8, 16, 32, 64)


class Rows(NamedTuple):
    """Rows to learn from, fresh ones with the document of each, and what those were made of, where that is known."""

    train: np.ndarray
    fresh: np.ndarray
    groups: np.ndarray | None = None
    truth: Planted | None = None


def minilm() -> Rows:
    """Token activations, whole chapters kept aside, every fourth of them; rows of mean square one."""
    data = jd.datasets.load("minilm_tokens")
    _, chapter = np.unique(data.topic, return_inverse=True)
    aside = chapter % 4 == 1
    X = data.X - data.X[~aside].mean(0)
    X /= np.sqrt((X[~aside] ** 2).sum(1).mean())
    return Rows(X[~aside], X[aside], chapter[aside])


def planted(n=8192, fresh=2048, d=64, atoms=192, on=0.04, seed=0) -> Rows:
    """Exponential codes, a share `on` of them, over random unit atoms, and a little noise; rows of mean square one."""
    key, options = jax.random.key(seed), {"frequency": on, "magnitudes": "exponential", "noise": 0.05}
    drawn = jd.synthetic.independent(key, n + fresh, atoms, d, **options)
    X = np.asarray(drawn.X / jnp.sqrt((drawn.X**2).sum(1).mean()))
    return Rows(X[:n], X[n:], truth=replace(drawn, X=X[n:], codes=drawn.codes[n:]))


CASES = {
    "minilm": ("MiniLM token activations", minilm, Sizes(n_atoms=512, lam=0.1)),
    "planted": ("planted codes", planted, Sizes(n_atoms=256, lam=0.1, sae_steps=2000)),
    "wide": (
        "planted codes, wide",
        partial(planted, n=4096, fresh=512, d=256, atoms=2048, on=0.006),
        Sizes(n_atoms=8192, lam=0.1, sae_steps=400, steps=40, depths=(1, 4), moves=(8, 32)),
    ),
}


def cpu(call):
    """What a call gives, and the least CPU seconds of some calls after a first one."""
    found, times = jax.block_until_ready(call()), []
    for _ in range(REPEATS):
        begin = time.process_time()
        jax.block_until_ready(call())
        times.append(time.process_time() - begin)
    return found, min(times)


def f1_of(dictionary, codes, truth: Planted | None) -> float:
    """F1 of the features that codes name: each latent names its nearest one, and a feature is named where any of its latents is on."""
    if truth is None:
        return float("nan")
    nearest = nearest_features(unit_rows(dictionary.atoms), truth.dictionary.atoms)
    names = np.asarray(nearest)[:, None] == np.arange(len(truth.dictionary.atoms))
    named, on = np.asarray(codes > 0, np.float32) @ names > 0, np.asarray(truth.codes > 0)
    return float(2 * np.sum(named & on) / np.sum(named.astype(int) + on))


class Judge:
    """Measures encoders on fresh rows against exact codes of one dictionary."""

    def __init__(self, problem, dictionary, rows: Rows):
        X, groups = rows.fresh, rows.groups
        self.problem, self.dictionary, self.X, self.truth = problem, dictionary, jnp.asarray(X), rows.truth
        self.many = jnp.tile(self.X, (-(-TIMED_ROWS // len(X)), 1))
        self.groups = None if groups is None else numbered(groups)
        self.least = self.values(jd.encode(problem, dictionary, self.X, tol=TOL).codes)

    def values(self, codes):
        """F by row."""
        return sample_objectives(self.problem, self.dictionary, codes, self.X)

    def point(self, family, name, matmuls, encode, **more) -> Point:
        """An encoder's costs and losses."""
        codes, (_, seconds) = encode(self.X), cpu(lambda: encode(self.many))
        values = self.values(codes)
        told = paired(values - self.least, jnp.ones_like(values), self.groups)
        r = jd.residual(self.dictionary, codes, self.X)
        rows = len(self.X)
        squared, active = float(jnp.sum(r * r)) / rows, float(jnp.sum(codes > 0)) / rows
        return Point(
            family, name, matmuls, seconds / len(self.many), float(values.mean()), float(told.gain), float(told.standard_error),
            squared, active, f1=f1_of(self.dictionary, codes, self.truth), **more,
        )  # fmt: skip


def compiled(encoder):
    """Its `encode` as one program, its numbers arguments of it."""
    program = jax.jit(lambda encoder, X: encoder.encode(X))
    return lambda X: program(encoder, X)


def one_matmul(judge: Judge, sae):
    """The SAE, and the tied encoder of its dictionary."""
    encoders = {"SAE": sae, "tied": jd.sae.tied_sae(judge.dictionary, judge.problem.lam)}
    for name, encoder in encoders.items():
        yield judge.point(name, name, 1, compiled(encoder))


def untrained(judge: Judge, sizes: Sizes, sae):
    """ISTA and FISTA from zero, FISTA from the SAE's codes."""
    for name, accelerated, start in (("ISTA", False, None), ("FISTA", True, None), ("FISTA, from the SAE", True, sae)):
        for depth in sizes.depths:
            encoder = jd.sae.unroll(judge.problem, judge.dictionary, depth, start=start, accelerated=accelerated)
            matmuls = 2 * depth + (1 if start is not None else -1)
            yield judge.point(name, f"{name}, {depth}", matmuls, compiled(encoder))


def learned(judge: Judge, sizes: Sizes, X, sae, keep):
    """The same steps with learned numbers, from zero and from the SAE's codes; `keep` takes the encoders."""
    for name, start in (("learned, from zero", None), ("learned, from the SAE", sae)):
        for depth in sizes.depths:
            options = {"start": start, "batch_size": sizes.batch_size, "key": jax.random.key(2)}
            args = (judge.problem, judge.dictionary, X, depth)
            jax.block_until_ready(jd.sae.train_unrolled(*args, steps=1, **options).levels)
            begin = time.process_time()
            encoder = jax.block_until_ready(jd.sae.train_unrolled(*args, steps=sizes.steps, **options))
            seconds, numbers = time.process_time() - begin, 2 * sizes.n_atoms * depth
            keep[name, depth] = encoder
            matmuls = 2 * depth + 2 if start is not None else 2 * depth - (depth == 1)
            yield judge.point(name, f"{name}, {depth}", matmuls, compiled(encoder), learned=numbers, training=seconds)


def moved(judge: Judge, sizes: Sizes, sae):
    """Moves of single codes, from zero and from the SAE's codes."""
    d = judge.X.shape[1]
    for name, start in (("moves, from zero", None), ("moves, from the SAE", sae)):
        for moves in sizes.moves:
            encoder = jd.sae.unroll_moves(judge.problem, judge.dictionary, moves, start=start)
            matmuls = (1 if start is None else 3) + 3 * moves / d
            yield judge.point(name, f"{name}, {moves}", matmuls, compiled(encoder))


def exact(judge: Judge, sizes: Sizes, sae, kept):
    """Exact codes from a cold start, from the SAE's codes, and from the best learned encoder's; the start's own cost is counted."""
    problem, dictionary = judge.problem, judge.dictionary
    starts = {
        "exact": lambda X: jd.encode(problem, dictionary, X, tol=TOL),
        "exact, from the SAE": lambda X: jd.sae.exact_codes(sae, X, float(problem.lam), tol=TOL),
    }
    for depth in sorted({sizes.depths[len(sizes.depths) // 2], sizes.depths[-1]}):
        begin = kept["learned, from the SAE", depth]
        starts[f"exact, from learned, {depth}"] = lambda X, begin=begin: jd.encode(
            problem, dictionary, X, tol=TOL, codes=begin.encode(X)
        )
    for name, encode in starts.items():
        done = encode(judge.X)
        assert int(done.status) in (SOLVED, ROUNDING), (
            done.message()
        )  # float32 cannot show every row's gap to be so small
        told = f"{name} ({int(done.steps)} looks)"
        yield judge.point(name, told, float("nan"), lambda X, encode=encode: encode(X).codes)


def measured(rows: Rows, sizes: Sizes) -> tuple[list[Point], str]:
    """The points of one case, and a sentence on its dictionary where there is a true one."""
    X, problem = jnp.asarray(rows.train), jd.Problem(lam=sizes.lam)
    sae = jd.sae.train(X, sizes.n_atoms, key=jax.random.key(1), lam=sizes.lam, steps=sizes.sae_steps, batch_size=512)
    judge, kept = Judge(problem, sae.dictionary, rows), {}
    parts = (
        one_matmul(judge, sae),
        untrained(judge, sizes, sae),
        learned(judge, sizes, X, sae, kept),
        moved(judge, sizes, sae),
    )
    points = [point for part in parts for point in part]
    points += list(exact(judge, sizes, sae, kept))
    return points, "" if rows.truth is None else beside_truth(judge)


def beside_truth(judge: Judge) -> str:
    """How near the dictionary is to the true one, and what exact codes of that one reach."""
    problem, truth = judge.problem, judge.truth
    codes = jd.encode(problem, truth.dictionary, judge.X, tol=TOL).codes
    value = float(jnp.mean(sample_objectives(problem, truth.dictionary, codes, judge.X)))
    near = jnp.max(truth.dictionary.atoms @ unit_rows(judge.dictionary.atoms).T, axis=1)
    return (
        f" {len(near):,} true features, {float(jnp.mean(jnp.sum(truth.codes > 0, axis=1))):.1f} on in a row; the latent nearest to "
        f"each has a mean cosine of {float(jnp.mean(near)):.3f} with it. Exact codes of the true dictionary: F {value:.5f}, "
        f"F1 {f1_of(truth.dictionary, codes, truth):.3f}."
    )


def main(given=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    asked = parser.parse_args(given)
    begin, found, text = time.process_time(), [], []
    for name in asked.cases:
        title, rows_of, sizes = CASES[name]
        rows = rows_of()
        points, beside = measured(rows, sizes)
        found.append((title, points))
        section = list(lines(title, points, rows, sizes, beside))
        text += section
        print("\n".join(section), flush=True)
        head = (
            f"# Encoders between one matmul and exact codes\n\n`python benchmarks/encoders.py`, {time.strftime('%Y-%m-%d')}, "
            f"{platform.machine()}, jax {jax.__version__}, float32; {time.process_time() - begin:.0f} CPU seconds in all. Exact codes to a "
            f"relative gap of {TOL:g}, the start's own cost counted.\n\n"
            f"![F above exact codes against cost]({asked.out.with_suffix('.png').name})"
        )
        # After every case, so that one cut short leaves those before it.
        asked.out.write_text("\n".join([head, *text]) + "\n")
        figure(found, asked.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
