"""Exact codes for a fixed dictionary: jaxdict's compiled kernels and plain JAX, SPAMS and scikit-learn, in one run.

    python benchmarks/codes.py [--out benchmarks/codes.md] [--wide-samples 1024]

Image patches and planted data, `min_{z >= 0} 1/2 ||x - z D||^2 + lam sum z`, float64, then SAE width in float32, where the unit is
one dense pass `X @ W` over the same samples. CPU seconds of the process (user + system) and wall seconds, medians of 5 calls after
a first one; the slow solvers are given the first 1,000 samples. SPAMS gets as many threads as the kernels. The worst gap is
recomputed in float64 from the codes alone.
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
from jaxdict.encoding.host import kernels

jax.config.update("jax_enable_x64", True)
warnings.filterwarnings("ignore", category=ConvergenceWarning)
FEW = 1000


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


def timed(run, repeats=5):
    found, times = run(), []
    for _ in range(repeats):
        cpu, wall = time.process_time(), time.perf_counter()
        found = run()
        times.append((time.process_time() - cpu, time.perf_counter() - wall))
    return found, *np.median(times, axis=0)


def worst_gap(codes, X, D, lam):
    """The largest T2 gap over the objective, in float64, from the definition; and the mean number of codes in use."""
    codes = codes.toarray() if hasattr(codes, "toarray") else jd.dense_codes(codes, D.shape[0])
    Z, X, D = (np.asarray(v, np.float64) for v in (codes, X, D))
    r = X - Z @ D
    theta = r / np.maximum(1, (r @ D.T).max(1) / lam)[:, None]
    primal = 0.5 * (r**2).sum(1) + lam * Z.sum(1)
    gap = primal - 0.5 * (X**2).sum(1) + 0.5 * ((X - theta) ** 2).sum(1)
    return np.max(gap / np.maximum(primal, 1e-300), initial=0), (Z > 0).sum(1).mean()


def peers(title, X, D, lam):
    yield f"\n## {title}: {X.shape[0]} samples, {X.shape[1]} dimensions, {D.shape[0]} atoms, lam = {lam}\n"
    yield "| solver | samples | CPU s | wall s | CPU us a sample | mean codes in use | worst relative gap |\n|---|---|---|---|---|---|---|"
    solvers = {
        "jaxdict, compiled": (ours("compiled"), len(X)),
        "SPAMS lasso": (spams_lasso, len(X)),
        "jaxdict, plain JAX": (ours("working_set"), FEW),
        "scikit-learn lasso_cd": (scikit, FEW),
    }
    for name, (solve, n) in solvers.items():
        try:
            codes, cpu, wall = timed(lambda solve=solve, n=n: solve(X[:n], D, lam))
        except ImportError as missing:
            yield f"| {name} | not installed ({missing.name}) | | | | | |"
            continue
        gap, used = worst_gap(codes[:FEW], X[:FEW], D, lam)
        yield f"| {name} | {n} | {cpu:.3f} | {wall:.3f} | {1e6 * cpu / n:.1f} | {used:.1f} | {gap:.1e} |"


def wide(n, lam=0.3):
    X, D = planted(n, 768, 16_384, 30, 1.4, np.float32)
    run = ours("compiled", 1e-6, sparse=True)
    Xj, Dj, rows = jnp.asarray(X), jnp.asarray(D), slice(0, min(n, 64))
    _, pass_cpu, pass_wall = timed(lambda: X @ D.T)
    codes, cpu, wall = timed(lambda: run(Xj, Dj, lam))
    codes = jd.SparseCodes(codes.indices[rows], codes.values[rows])
    gap, used = worst_gap(codes, X[rows], D, float(np.float32(lam)))
    yield f"\n## SAE width: {n} samples, 768 dimensions, 16,384 atoms, lam = {lam}, float32\n"
    yield "| | CPU s | wall s |\n|---|---|---|"
    yield f"| one dense pass X @ W | {pass_cpu:.3f} | {pass_wall:.3f} |"
    yield f"| exact codes | {cpu:.3f} | {wall:.3f} |"
    yield f"| ratio | {cpu / pass_cpu:.1f} | {wall / pass_wall:.1f} |"
    yield f"\nMean codes in use {used:.1f}; worst relative gap of the first {rows.stop} samples, in float64: {gap:.1e}."


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
        wide(args.wide_samples),
        peers("image patches", *patches(), 0.1),
        peers("planted", *planted(), 0.2),
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
