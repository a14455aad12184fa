"""Exact codes for a fixed dictionary: jaxdict's numba kernels and plain JAX, SPAMS, skglm and scikit-learn, in one run.

    python benchmarks/codes.py [--out benchmarks/codes.md] [--wide-samples 1024]

Image patches and planted data, `min_{z >= 0} 1/2 ||x - z D||^2 + lam sum z`, float64, then SAE width in float32, where the unit is
one dense pass `X @ W` over the same samples. CPU seconds of the process (user + system) and wall seconds, medians of 5 calls after
a first one; the slow solvers are given the first 1,000 samples, skglm, which takes one at a time, 200. SPAMS gets as many threads
as the kernels. The worst gap is recomputed in float64 from the codes alone. The rows are also for compare.py.
"""

import argparse
import platform
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_sample_image
from sklearn.decomposition import sparse_encode
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.image import extract_patches_2d

import jaxdict as jd
from jaxdict.encoding.numba_engine.calls import kernels

jax.config.update("jax_enable_x64", True)
warnings.filterwarnings("ignore", category=ConvergenceWarning)
FEW, FEWEST = 1000, 200


def patches(n=10_000, k=256):
    image = load_sample_image("china.jpg").mean(2) / 255
    X = extract_patches_2d(image, (8, 8), max_patches=n + k, random_state=0).reshape(n + k, 64)
    X = X - X.mean(1, keepdims=True)
    X, D = X[:n], X[n:] + 1e-6 * np.random.default_rng(0).normal(size=(k, 64))
    return X / np.sqrt((X**2).sum(1).mean()), D / np.linalg.norm(D, axis=1, keepdims=True)


def planted(n=10_000, d=256, k=2048, active=20, noise=0.4, dtype=np.float64):
    rng = np.random.default_rng(0)
    D = rng.normal(size=(k, d)).astype(dtype)
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    X = noise / np.sqrt(d) * rng.normal(size=(n, d)).astype(dtype)
    for row in X:
        row += rng.uniform(0.5, 1.5, active).astype(dtype) @ D[rng.choice(k, active, replace=False)]
    return X, D


def ours(method, tol=1e-9, **options):
    def run(X, D, lam):
        done = jd.encode(jd.Problem(lam=lam), jd.Dictionary(D), X, tol=tol, method=method, **options)
        return jax.block_until_ready(done.codes)

    return run


def spams_lasso(X, D, lam):
    import spams

    codes = spams.lasso(
        np.asfortranarray(X.T), D=np.asfortranarray(D.T), lambda1=lam, mode=2, pos=True, numThreads=kernels().threads()
    )
    return codes.T


def scikit(X, D, lam):
    return sparse_encode(X, D, algorithm="lasso_cd", alpha=lam, positive=True, max_iter=10_000, n_jobs=1)


def skglm_lasso(X, D, lam):
    """Its solver without the estimator around it, a sample at a time; its data term and tolerance are means over dimensions."""
    from skglm.datafits import Quadratic
    from skglm.penalties import L1
    from skglm.solvers import AndersonCD

    d, design = D.shape[1], np.asfortranarray(D.T)
    solver = AndersonCD(tol=1e-9 * lam / d, max_iter=200, fit_intercept=False)
    fit, penalty = Quadratic(), L1(lam / d, positive=True)
    return np.stack([solver.solve(design, x, fit, penalty, run_checks=False)[0] for x in X])


def timed(run, repeats=5):
    """What `run` gave, and seconds: of the first call, which compiles, and lists of those after it."""
    times = []
    for _ in range(1 + repeats):
        cpu, wall = time.process_time(), time.perf_counter()
        found = run()
        times.append((time.process_time() - cpu, time.perf_counter() - wall))
    (first_cpu, first_wall), *later = times
    cpu, wall = (list(part) for part in zip(*later, strict=True))
    return found, {"first_cpu": first_cpu, "first_wall": first_wall, "cpu": cpu, "wall": wall}


def worst_gap(codes, X, D, lam):
    """The largest T2 gap over the objective, in float64, from the definition; and the mean number of codes in use."""
    codes = codes.toarray() if hasattr(codes, "toarray") else jd.dense_codes(codes, D.shape[0])
    Z, X, D = (np.asarray(v, np.float64) for v in (codes, X, D))
    r = X - Z @ D
    theta = r / np.maximum(1, (r @ D.T).max(1) / lam)[:, None]
    primal = 0.5 * (r**2).sum(1) + lam * Z.sum(1)
    gap = primal - 0.5 * (X**2).sum(1) + 0.5 * ((X - theta) ** 2).sum(1)
    return float(np.max(gap / np.maximum(primal, 1e-300), initial=0)), float((Z > 0).sum(1).mean())


def peers(X, D, lam, repeats=5):
    """A dict a solver: its name, samples, seconds (see `timed`), codes in use and gap, or what is `missing`."""
    solvers = {
        "jaxdict, numba": (ours("numba"), len(X)),
        "SPAMS lasso": (spams_lasso, len(X)),
        "skglm": (skglm_lasso, FEWEST),
        "jaxdict, plain JAX": (ours("working_set"), FEW),
        "scikit-learn lasso_cd": (scikit, FEW),
    }
    for name, (solve, n) in solvers.items():
        row = {"solver": name, "samples": min(n, len(X))}
        try:
            codes, seconds = timed(lambda solve=solve, n=n: solve(X[:n], D, lam), repeats)
        except ImportError as missing:
            yield row | {"missing": missing.name or str(missing)}
            continue
        checked = min(n, FEW)
        gap, used = worst_gap(codes[:checked], X[:checked], D, lam)
        yield row | seconds | {"used": used, "gap": gap}


def wide(n, lam=0.3, d=768, k=16_384, active=30, repeats=5):
    """Two dicts: one dense pass over the samples, then their exact codes, with the gap of the first 64."""
    X, D = planted(n, d, k, active, 1.4, np.float32)
    run = ours("numba", 1e-6, sparse=True)
    Xj, Dj, rows = jnp.asarray(X), jnp.asarray(D), slice(0, min(n, 64))
    sizes = {"samples": n, "d": d, "k": k, "lam": lam}
    _, seconds = timed(lambda: X @ D.T, repeats)
    yield {"solver": "one dense pass X @ W"} | sizes | seconds
    try:
        codes, seconds = timed(lambda: run(Xj, Dj, lam), repeats)
    except ImportError as missing:
        yield {"solver": "exact codes", "missing": missing.name or str(missing)} | sizes
        return
    codes = jd.SparseCodes(codes.indices[rows], codes.values[rows])
    gap, used = worst_gap(codes, X[rows], D, float(np.float32(lam)))
    yield {"solver": "exact codes"} | sizes | seconds | {"used": used, "gap": gap, "checked": rows.stop}


def peers_lines(title, X, D, lam):
    yield f"\n## {title}: {X.shape[0]} samples, {X.shape[1]} dimensions, {D.shape[0]} atoms, lam = {lam}\n"
    yield "| solver | samples | CPU s | wall s | CPU us a sample | mean codes in use | worst relative gap |\n|---|---|---|---|---|---|---|"
    for row in peers(X, D, lam):
        if "missing" in row:
            yield f"| {row['solver']} | not installed ({row['missing']}) | | | | | |"
            continue
        n, cpu, wall = row["samples"], np.median(row["cpu"]), np.median(row["wall"])
        yield f"| {row['solver']} | {n} | {cpu:.3f} | {wall:.3f} | {1e6 * cpu / n:.1f} | {row['used']:.1f} | {row['gap']:.1e} |"


def wide_lines(n):
    dense, exact = wide(n)
    yield f"\n## SAE width: {n} samples, {dense['d']} dimensions, {dense['k']:,} atoms, lam = {dense['lam']}, float32\n"
    if "missing" in exact:
        yield f"not installed ({exact['missing']})"
        return
    yield "| | CPU s | wall s |\n|---|---|---|"
    (pass_cpu, pass_wall), (cpu, wall) = ((np.median(row["cpu"]), np.median(row["wall"])) for row in (dense, exact))
    yield f"| one dense pass X @ W | {pass_cpu:.3f} | {pass_wall:.3f} |"
    yield f"| exact codes | {cpu:.3f} | {wall:.3f} |"
    yield f"| ratio | {cpu / pass_cpu:.1f} | {wall / pass_wall:.1f} |"
    yield (
        f"\nMean codes in use {exact['used']:.1f}; worst relative gap of the first {exact['checked']} samples, in float64: "
        f"{exact['gap']:.1e}."
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out")
    parser.add_argument("--wide-samples", type=int, default=1024)
    args = parser.parse_args()
    lines = [
        f"# Exact codes\n\n`python benchmarks/codes.py`, {platform.machine()}, {kernels().threads()} threads, float64."
    ]
    print(lines[0], flush=True)
    parts = (
        wide_lines(args.wide_samples),
        peers_lines("image patches", *patches(), 0.1),
        peers_lines("planted", *planted(), 0.2),
    )
    for part in parts:
        for line in part:
            lines.append(line)
            print(line, flush=True)
    if args.out:
        with open(args.out, "w") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
