"""Dictionaries of scikit-learn, SPAMS and jaxdict on the same data, each certified from the point alone, in one run.

    python benchmarks/peers.py [--out benchmarks/results.md]

All solve `mean 1/2 ||x - z D||^2 + lam sum z` with z >= 0 and no offset, digits and a planted dictionary, one key. Times are CPU
seconds of the process (user + system) and wall seconds; jaxdict's are given with and without compilation. SPAMS is skipped where it
is not installed.
"""

import argparse
import platform
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import DictionaryLearning, MiniBatchDictionaryLearning
from sklearn.exceptions import ConvergenceWarning

import jaxdict as jd

jax.config.update("jax_enable_x64", True)
warnings.filterwarnings("ignore", category=ConvergenceWarning)  # what they miss is what the table shows
LAM = 0.1


def digits():
    X = load_digits().data / 16
    X = X - X.mean(0)
    return X / np.sqrt((X**2).sum(1).mean()), 100


def planted():
    keys = jax.random.split(jax.random.key(0), 4)
    D = jax.random.normal(keys[0], (64, 32))
    D = D / jnp.linalg.norm(D, axis=1, keepdims=True)
    order = jax.vmap(lambda key: jax.random.permutation(key, 64))(jax.random.split(keys[1], 2000))
    Z = jnp.where(order < 4, jax.random.uniform(keys[2], (2000, 64), minval=0.5, maxval=1.5), 0)
    return np.asarray(Z @ D + 0.02 * jax.random.normal(keys[3], (2000, 32))), 64


def scikit_batch(X, k):
    model = DictionaryLearning(
        k,
        alpha=LAM,
        positive_code=True,
        fit_algorithm="cd",
        transform_algorithm="lasso_cd",
        max_iter=200,
        tol=1e-8,
        random_state=0,
    )
    codes = model.fit_transform(X)
    return model.components_, codes


def scikit_minibatch(X, k):
    model = MiniBatchDictionaryLearning(
        k,
        alpha=LAM,
        positive_code=True,
        fit_algorithm="cd",
        transform_algorithm="lasso_cd",
        max_iter=200,
        tol=0,
        max_no_improvement=None,
        random_state=0,
    )
    codes = model.fit(X).transform(X)
    return model.components_, codes


def spams_batch(X, k):
    import spams

    D = spams.trainDL(
        np.asfortranarray(X.T),
        K=k,
        lambda1=LAM,
        mode=2,
        posAlpha=True,
        iter=300,
        batch=True,
        numThreads=2,
        verbose=False,
    )
    codes = spams.lasso(np.asfortranarray(X.T), D=D, lambda1=LAM, mode=2, pos=True, numThreads=2)
    return D.T, np.asarray(codes.todense()).T


def ours(X, k):
    solution = jd.fit(jd.Problem(lam=LAM, offset=False), X, k, key=jax.random.key(0), tol=1e-8)
    return solution.dictionary.atoms, jax.block_until_ready(solution.codes)


def timed(solve, X, k):
    cpu, wall = time.process_time(), time.perf_counter()
    point = solve(X, k)
    return point, time.process_time() - cpu, time.perf_counter() - wall


def row(name, point, X, cpu, wall):
    problem = jd.Problem(lam=LAM, offset=False)
    atoms, codes = (np.asarray(part, np.float64) for part in point)
    told = jd.certify(problem, jd.Dictionary(atoms), codes, X)
    exact = jd.encode(problem, jd.Dictionary(atoms), X, tol=1e-10).codes
    best = jd.certify(problem, jd.Dictionary(atoms), exact, X)
    s = told.stationarity
    return (
        f"| {name} | {cpu:.1f} | {wall:.1f} | {float(told.objective):.6f} | {float(s.codes):.1e} | {float(s.atoms):.1e} "
        f"| {float(best.stationarity.atoms):.1e} | {float(told.duality_gap.mean):.1e} | {int(told.n_dead)} |"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out")
    out = parser.parse_args().out
    lines = [
        "# Peers, certified",
        "",
        f"`python benchmarks/peers.py`, {platform.machine()}, {jax.local_device_count()} CPU device, lam = {LAM}, no offset, float64. "
        "Defects are T1's, zero where optimal; the last but two columns have the atoms' defect with exact codes for the same atoms.",
    ]
    for data in (digits, planted):
        X, k = data()
        lines += [
            "",
            f"## {data.__name__}: {X.shape[0]} samples, {X.shape[1]} dimensions, {k} atoms",
            "",
            "| solver | CPU s | wall s | objective | codes defect | atoms defect | atoms defect, exact codes | duality gap | dead |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        solvers = {
            "scikit-learn DictionaryLearning": scikit_batch,
            "scikit-learn MiniBatchDictionaryLearning": scikit_minibatch,
            "SPAMS trainDL, batch, 300 iterations": spams_batch,
            "jaxdict fit, with compilation": ours,
            "jaxdict fit, second call": ours,
        }
        for name, solve in solvers.items():
            try:
                point, cpu, wall = timed(solve, X, k)
            except ImportError as missing:
                lines.append(f"| {name} | not installed ({missing.name}) | | | | | | | |")
            else:
                lines.append(row(name, point, X, cpu, wall))
            print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    print(text)
    if out:
        with open(out, "w") as file:
            file.write(text)


if __name__ == "__main__":
    main()
