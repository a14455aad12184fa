"""Seconds to each decade of stationarity: digits, image patches, MiniLM tokens; `python benchmarks/deep_fits.py [names] [--limit S]`.

jaxdict's default fit (float64, no offset, tol 1e-6), wall seconds after compilation at which the worst of T1's measures first fell below
each power of ten. Beside it SPAMS's batch learner, stopped after 30, 100 and 300 iterations: its seconds, and the atoms' defect with
exact codes for its dictionary (better than with its own). Writes deep_fits.md.
"""

import argparse
import time
from pathlib import Path

import jax
import numpy as np
from codes import patches
from sklearn.datasets import load_digits

import jaxdict as jd

jax.config.update("jax_enable_x64", True)
DECADES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


def scaled(X):
    X = X - X.mean(0)
    return X / np.sqrt((X**2).sum(1).mean())


def data():
    """Name -> (X, atoms, lam)."""
    return {
        "digits": lambda: (scaled(load_digits().data / 16), 100, 0.1),
        "patches": lambda: (patches(20_000, 256)[0], 256, 0.1),
        "minilm": lambda: (scaled(jd.datasets.load("minilm_tokens").X.astype(float)), 128, 0.1),
    }


def ours(X, k, lam, limit):
    """Seconds to each decade, seconds in all, and the message; the first call compiles."""
    problem, key = jd.Problem(lam=lam, offset=False), jax.random.key(0)
    seen = []

    def note(progress):
        seen.append((time.perf_counter(), progress.stationarity))

    jd.fit(problem, X, k, key=key, max_steps=3000, tol=1e3, callback=note)  # compiles; stops at once
    seen.clear()
    begin = time.perf_counter()
    solution = jd.fit(problem, X, k, key=key, max_steps=3000, tol=1e-6, callback=note)
    jax.block_until_ready(solution.codes)
    total = time.perf_counter() - begin
    reached = [next((t - begin for t, s in seen if s <= decade), None) for decade in DECADES]
    return reached, total, f"{int(solution.steps)} steps, {float(solution.certificate.stationarity.worst):.1e}"


def spams_rows(X, k, lam, limit):
    """(iterations, seconds, atoms' defect with exact codes) while the limit lasts."""
    try:
        import spams
    except ImportError:
        return []
    rows, problem = [], jd.Problem(lam=lam, offset=False)
    for iterations in (30, 100, 300):
        begin = time.perf_counter()
        D = spams.trainDL(
            np.asfortranarray(X.T), K=k, lambda1=lam, mode=2, posAlpha=True, iter=iterations, batch=True, numThreads=2, verbose=False,
        )  # fmt: skip
        seconds = time.perf_counter() - begin
        dictionary = jd.Dictionary(np.asarray(D.T))
        codes = jd.encode(problem, dictionary, X, tol=1e-10).codes
        defect = float(jd.certify(problem, dictionary, codes, X).stationarity.atoms)
        rows.append((iterations, seconds, defect))
        if seconds * 3 > limit:
            break
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(data()))
    parser.add_argument("--limit", type=float, default=300)
    arguments = parser.parse_args()
    heads = " | ".join(f"{decade:g}" for decade in DECADES)
    lines = [
        "# Deep fits",
        "",
        "`python benchmarks/deep_fits.py`, 2 cores, float64, wall seconds. "
        + " ".join((__doc__ or "").split("\n\n", 1)[1].split()),
        "",
    ]
    lines += [
        f"| data | {heads} | in all | ended | SPAMS batch: iterations, seconds, atoms' defect |",
        "|---" * 10 + "|",
    ]
    for name in arguments.names:
        X, k, lam = data()[name]()
        reached, total, ended = ours(X, k, lam, arguments.limit)
        cells = " | ".join("-" if t is None else f"{t:.1f}" for t in reached)
        rivals = "; ".join(f"{n}, {s:.1f} s, {d:.1e}" for n, s, d in spams_rows(X, k, lam, arguments.limit))
        lines.append(
            f"| {name} ({len(X)} x {X.shape[1]}, K = {k}, lam = {lam:g}) | {cells} | {total:.1f} | {ended} | {rivals} |"
        )
        print(lines[-1], flush=True)
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
