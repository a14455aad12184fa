"""jaxdict beside SPAMS, skglm and scikit-learn, all in one run on one machine: exact codes, codes at SAE width, whole fits.

    python benchmarks/compare.py [--only codes|wide|fits] [--repeats 3] [--limit 300] [--small] [--out benchmarks/compare.md]
    python benchmarks/compare.py --readme [--from-json]

Prints each row as it ends and writes the tables to compare.md, the rows to compare.json beside it (after every row, so that a run that
is killed leaves what it had). `--readme` also puts a short table between the markers in README.md, `--from-json` measures nothing and
takes the rows from compare.json. `--limit` is in seconds, for one run of one rival's learner; longer ones are left out, and the table
says so. `--small` is for the tests. A row is a dict with what was measured; compare_tables.py makes the tables of them.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import codes
import jax
import numpy as np
import peers
from compare_tables import PARTS, absent, between_markers, readme_lines, report, spread
from sklearn.decomposition import DictionaryLearning, MiniBatchDictionaryLearning

import jaxdict as jd

Row = dict
README = Path(__file__).parent.parent / "README.md"
LAM = peers.LAM


def spams_learner(X, k, iterations):
    import spams

    D = spams.trainDL(
        np.asfortranarray(X.T), K=k, lambda1=LAM, mode=2, posAlpha=True, iter=iterations, batch=True, numThreads=2, verbose=False,
    )  # fmt: skip
    return D.T


def scikit_learner(X, k, iterations, model: type = DictionaryLearning, **options):
    fixed = {"positive_code": True, "fit_algorithm": "cd", "transform_algorithm": "lasso_cd", "random_state": 0}
    return model(k, alpha=LAM, max_iter=iterations, **fixed, **options).fit(X).components_


# Name -> learner, and the iterations that it is given.
RIVALS: dict[str, tuple[Callable, tuple[int, ...]]] = {
    "SPAMS trainDL, batch": (spams_learner, (30, 100, 300)),
    "scikit-learn DictionaryLearning": (partial(scikit_learner, tol=1e-8), (20, 200)),
    "scikit-learn MiniBatchDictionaryLearning": (
        partial(scikit_learner, model=MiniBatchDictionaryLearning, tol=0, max_no_improvement=None),
        (20, 200),
    ),
}


def judged(atoms, X) -> Row:
    """The atoms' defect and the objective with exact codes; atoms of norm zero, which no code can use, are left out."""
    atoms = np.asarray(atoms, float)
    problem, dictionary = jd.Problem(lam=LAM, offset=False), jd.Dictionary(atoms[np.linalg.norm(atoms, axis=1) > 0])
    told = jd.certify(problem, dictionary, jd.encode(problem, dictionary, X, tol=1e-10).codes, X)
    return {"defect": float(told.stationarity.atoms), "objective": float(told.objective)}


class Record:
    """A fit's callback: (CPU, wall, measure) whenever the worst measure falls to a new low. One object for all fits: it is compiled in."""

    def start(self):
        self.began, self.lows = (time.process_time(), time.perf_counter()), []

    def seconds(self):
        return time.process_time() - self.began[0], time.perf_counter() - self.began[1]

    def __call__(self, progress):
        if not self.lows or progress.stationarity < self.lows[-1][2]:
            self.lows.append((*self.seconds(), progress.stationarity))


def our_fits(X, k, repeats, tols, record) -> Iterator[Row]:
    """A row a tolerance, each with the `lows` of every run."""
    problem = jd.Problem(lam=LAM, offset=False)

    def fit(tol):
        record.start()
        solution = jd.fit(problem, X, k, key=jax.random.key(0), tol=tol, callback=record)
        jax.block_until_ready(solution)
        jax.effects_barrier()
        return solution, *record.seconds(), record.lows

    _, first_cpu, first_wall, _ = fit(1e3)  # compiles, and stops at once
    for tol in tols:
        solutions, cpu, wall, lows = zip(*(fit(tol) for _ in range(repeats)), strict=True)
        row = {"solver": f"jaxdict fit, tol {tol:g}", "iterations": int(solutions[-1].steps), "cpu": cpu, "wall": wall}
        row |= {"first_cpu": first_cpu, "first_wall": first_wall, "lows": lows}
        yield row | judged(solutions[-1].dictionary.atoms, X)


def rival_fits(name, X, k, repeats, limit, ladder=None) -> Iterator[Row]:
    """A row a number of iterations, while a run is expected to end within the limit, judged by the run before (2 iterations at first)."""
    learner, usual = RIVALS[name]
    try:
        _, _, wall = peers.timed(partial(learner, iterations=2), X, k)
    except ImportError as missing:
        yield {"solver": name, "missing": missing.name or str(missing)}
        return
    pace = wall / 2
    for iterations in ladder or usual:
        if pace * iterations > limit:
            yield {"solver": name, "iterations": iterations, "skipped": pace * iterations, "limit": limit}
            return
        runs = [peers.timed(partial(learner, iterations=iterations), X, k) for _ in range(repeats)]
        atoms, cpu, wall = zip(*runs, strict=True)
        pace = np.median(wall) / iterations
        yield {"solver": name, "iterations": iterations, "cpu": cpu, "wall": wall} | judged(atoms[-1], X)


def code_rows(repeats, small) -> Iterator[Row]:
    few = {"n": 60, "k": 20} if small else {}
    planted = partial(codes.planted, d=16, active=3) if small else codes.planted
    for name, make, lam in (("image patches", codes.patches, 0.1), ("planted", planted, 0.2)):
        X, D = (part[:, :16] if small else part for part in make(**few))  # one shape, compiled once
        yield from named(f"{name}, d = {X.shape[1]}, K = {len(D)}", codes.peers(X, D, lam, repeats))


def wide_rows(repeats, small) -> Iterator[Row]:
    sizes = {"n": 16, "d": 32, "k": 600, "active": 3} if small else {"n": 1024}
    return named("SAE width", codes.wide(**sizes, repeats=repeats))


def fit_rows(repeats, limit, small) -> Iterator[Row]:
    tols, record = (1e-6, 1e-9), Record()
    data = {
        "digits": (*peers.digits(), repeats, tols),
        "planted": (*peers.planted(), repeats, tols),
        "patches": (codes.patches(20_000)[0], 256, 1, tols[:1]),
    }
    if small:  # one shape, compiled once
        data = {name: (X[:200, :32], 8, repeats, (1e-3,)) for name, (X, *_) in data.items()}
    for name, (X, k, times, tols) in data.items():
        title = f"{name}, {len(X)} x {X.shape[1]}, K = {k}"
        yield from named(title, our_fits(X, k, times, tols, record))
        for rival in RIVALS:
            yield from named(title, rival_fits(rival, X, k, times, limit, (2, 4) if small else None))


def named(data, rows) -> Iterator[Row]:
    return ({"data": data, **row} for row in rows)


def machine(small) -> Row:
    versions = {}
    for package in ("jax", "numpy", "scikit-learn", "spams-bin", "skglm"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    kind = {"machine": platform.machine(), "cores": cores, "load": load, "date": time.strftime("%Y-%m-%d")}
    return {"part": "machine", "small": small, "versions": versions} | kind


def main(argv=None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=300)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    for flag in ("--small", "--readme", "--from-json"):
        parser.add_argument(flag, action="store_true")
    given = parser.parse_args(argv)
    if given.readme and (given.only or given.small):
        parser.error("--readme wants all parts at full size: leave out --only and --small")
    if given.readme:
        between_markers(README.read_text(), [])  # better now than after an hour
    kept = given.out.with_suffix(".json")
    rows = json.loads(kept.read_text()) if given.from_json else [machine(given.small)]
    parts = {
        "codes": lambda: code_rows(given.repeats, given.small),
        "wide": lambda: wide_rows(given.repeats, given.small),
        "fits": lambda: fit_rows(given.repeats, given.limit, given.small),
    }
    for part in () if given.from_json else PARTS if given.only is None else (given.only,):
        for row in parts[part]():
            rows.append({"part": part, **row})
            kept.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
            cpu = f"CPU s {spread(row['cpu'])}" if "cpu" in row else absent(row)
            print(part, row["data"], row["solver"], row.get("iterations", ""), cpu, sep=" | ", flush=True)
    given.out.write_text(report(rows))
    print(report(rows))
    if given.readme:
        README.write_text(between_markers(README.read_text(), readme_lines(rows)))
    return rows


if __name__ == "__main__":
    main()
