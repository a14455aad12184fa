"""Between one matmul and exact codes: what each encoder's codes lose on fresh rows, against what they cost.

    python benchmarks/encoders.py [--cases minilm planted wide] [--out benchmarks/encoders.md]

An SAE is trained on problem P's loss (`jd.sae.train`), and its own decoder is the dictionary of all encoders: the SAE, its tied form,
ISTA and FISTA cut short, the same steps with learned numbers (`jd.sae.train_unrolled`, on the SAE's training rows), from zero and from
the SAE's codes, moves of single codes, exact codes from a cold start and from others. F above that of exact codes is a mean over
rows that nothing was trained on, with the standard error of paired differences (over documents where rows have any). Costs are
multiply-adds a row in units of one matmul, d K of them, and CPU seconds of the process, the least of some calls after a first one, in
float32, over the fresh rows again and again. The moves' Gram matrix and the untrained steps' 1 / L are of the dictionary alone and are
not counted. Writes a table and a figure.
"""

import argparse
import platform
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxdict as jd
from jaxdict.encoding.exact import ROUNDING, SOLVED
from jaxdict.objectives import sample_objectives
from jaxdict.population.comparisons import numbered, paired

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


def minilm():
    """Token activations, whole chapters kept aside, every fourth of them; rows of mean square one."""
    data = jd.datasets.load("minilm_tokens")
    _, chapter = np.unique(data.topic, return_inverse=True)
    aside = chapter % 4 == 1
    X = data.X - data.X[~aside].mean(0)
    X /= np.sqrt((X[~aside] ** 2).sum(1).mean())
    return X[~aside], X[aside], chapter[aside]


def planted(n=8192, fresh=2048, d=64, atoms=192, on=0.04, seed=0):
    """Exponential codes, a share `on` of them, over random unit atoms, and a little noise; rows of mean square one."""
    draw = np.random.default_rng(seed)
    D = draw.normal(size=(atoms, d))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    codes = draw.exponential(size=(n + fresh, atoms)) * (draw.uniform(size=(n + fresh, atoms)) < on)
    X = codes @ D + 0.05 * draw.normal(size=(n + fresh, d))
    X = (X / np.sqrt((X**2).sum(1).mean())).astype(np.float32)
    return X[:n], X[n:], None


CASES = {
    "minilm": ("MiniLM token activations", minilm, Sizes(n_atoms=512, lam=0.1)),
    "planted": ("planted codes", planted, Sizes(n_atoms=256, lam=0.1, sae_steps=2000)),
    "wide": (
        "planted codes, wide",
        partial(planted, n=4096, fresh=512, d=128, atoms=1024, on=0.015),
        Sizes(n_atoms=5120, lam=0.1, sae_steps=150, steps=40, depths=(1, 4), moves=()),
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


class Judge:
    """Measures encoders on fresh rows against exact codes of one dictionary."""

    def __init__(self, problem, dictionary, X, groups):
        self.problem, self.dictionary, self.X = problem, dictionary, jnp.asarray(X)
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
            squared, active, **more,
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


def measured(rows, fresh, groups, sizes: Sizes) -> tuple[list[Point], float]:
    """The points of one case, and CPU seconds of one matmul a row."""
    X, problem = jnp.asarray(rows), jd.Problem(lam=sizes.lam)
    sae = jd.sae.train(X, sizes.n_atoms, key=jax.random.key(1), lam=sizes.lam, steps=sizes.sae_steps, batch_size=512)
    judge, kept = Judge(problem, sae.dictionary, fresh, groups), {}
    parts = (
        one_matmul(judge, sae),
        untrained(judge, sizes, sae),
        learned(judge, sizes, X, sae, kept),
        moved(judge, sizes, sae),
    )
    points = [point for part in parts for point in part]
    points += list(exact(judge, sizes, sae, kept))
    return points, points[0].seconds


def lines(title: str, points: list[Point], unit: float, rows, fresh, groups, sizes: Sizes):
    """One case as a section."""
    depends = "" if groups is None else f" of {len(np.unique(groups))} chapters that were kept aside whole"
    least = next(point.value for point in points if point.family == "exact")
    yield (
        f"\n## {title}\n\n{len(rows):,} rows to train on, {len(fresh):,} fresh ones{depends}; d = {rows.shape[1]}, K = {sizes.n_atoms}, "
        f"lam = {sizes.lam:g}; F of exact codes {least:.5f}; one matmul {1e6 * unit:.2f} CPU us a row.\n"
    )
    yield "| encoder | matmuls | CPU us a row | F | above exact | % of exact | squared error | L0 | learned numbers | CPU s to learn |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for p in points:
        cost = f"{p.matmuls:.3g}" if np.isfinite(p.matmuls) else "-"
        trained = f"{p.learned:,} | {p.training:.0f}" if p.learned else "- | -"
        above = f"{p.excess:.5f} ± {p.error:.5f} | {100 * p.excess / least:.2f}"
        yield (
            f"| {p.name} | {cost} | {1e6 * p.seconds:.2f} | {p.value:.5f} | {above} | {p.squared:.4f} | {p.active:.1f} | {trained} |"
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


def main(given=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    asked = parser.parse_args(given)
    begin, found, text = time.process_time(), [], []
    for name in asked.cases:
        title, rows_of, sizes = CASES[name]
        rows, fresh, groups = rows_of()
        points, unit = measured(rows, fresh, groups, sizes)
        found.append((title, points))
        section = list(lines(title, points, unit, rows, fresh, groups, sizes))
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
