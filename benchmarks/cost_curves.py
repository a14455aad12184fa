"""What encode, certify, fit, fit_stream and an audit cost against samples, atoms, dimensions and codes in use: time and peak memory.

    python benchmarks/cost_curves.py [--axes N K d L0] [--out benchmarks/cost_curves.md]

Planted sparse data, float32, one size doubled three times while the others stay. CPU seconds of the process (user + system, the
least of two calls after a first one) and memory above what the inputs take (the peak of one call, Linux only). Beside each
measured exponent (least squares in log-log) stands theory's: the same fit to the operation and byte counts in `COUNTS`, whose
terms are weighed alike, so that they tell which term leads and not how fast a term runs.
"""

import argparse
import ctypes
import gc
import os
import platform
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxdict as jd
from jaxdict.auditing.streaming import CHUNK_ENTRIES, stream
from jaxdict.encoding.numba_engine.calls import kernels
from jaxdict.encoding.numba_engine.kernels.codes import GRAM_BLOCK

BASE = {"N": 1000, "K": 512, "d": 128, "L0": 8}
SIZES = {
    "N": (500, 1000, 2000, 4000),
    "K": (256, 512, 1024, 2048),
    "d": (64, 128, 256, 512),
    "L0": (4, 8, 16, 32),
}
LAM, NOISE, STEPS, REPEATS = 0.2, 0.1, 5, 2
# Births start from 16 atoms and take about so many steps; the wide bound takes about so many passes over X.
BIRTHS, PASSES = 16 * 10, 30


def gram_codes(N, K, d, L0):
    """Gram matrix, correlations, looks at all atoms (one an added 16, each over the codes in use), Cholesky factors."""
    return K * K * d + N * K * d + N * K * L0 * (1 + L0 / 16) + N * L0**3 / 3


def batch(N, K):
    """Rows of a batch of the stochastic stage."""
    return min(N, jd.solvers.Online().rows_a_step(K))


# Multiply-adds, and float32 numbers held at the worst moment besides the inputs.
COUNTS = {
    "encode": (gram_codes, lambda N, K, d, L0: 2 * K * K + N * K + 2 * min(N * K, GRAM_BLOCK)),
    "certify": (
        lambda N, K, d, L0: 6 * N * K * d + (BIRTHS + PASSES) * N * d,
        lambda N, K, d, L0: 4 * N * K + 8 * N * d,
    ),
    "fit": (
        lambda N, K, d, L0: (STEPS + 1) * (gram_codes(N, K, d, L0) + 3 * N * K * d + N * K * L0) + 6 * N * K * d,
        lambda N, K, d, L0: 4 * N * K + 8 * N * d + 2 * K * K + 2 * min(N * K, GRAM_BLOCK),
    ),
    "stream's epoch": (
        lambda N, K, d, L0: N / batch(N, K) * gram_codes(batch(N, K), K, d, L0) + N * L0 * d,
        lambda N, K, d, L0: 2 * K * K + 2 * batch(N, K) * K + 8 * K * d,
    ),
    "stream's exact pass": (
        lambda N, K, d, L0: gram_codes(N, K, d, L0) + N * L0 * d,
        lambda N, K, d, L0: 2 * K * K + N * K + 2 * min(N * K, GRAM_BLOCK) + 12 * K * d + 4 * N * d,
    ),
    "audit's pass": (
        lambda N, K, d, L0: 3 * N * K * d,
        lambda N, K, d, L0: 4 * min(N * K, CHUNK_ENTRIES) + K * d + 3 * N * L0,
    ),
}


def planted(N, K, d, L0):
    rng = np.random.default_rng(0)
    D = rng.normal(size=(K, d))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    X = NOISE / np.sqrt(d) * rng.normal(size=(N, d))
    for row in X:
        row += rng.uniform(0.5, 1.5, L0) @ D[rng.choice(K, L0, replace=False)]
    return np.asarray(X, np.float32), np.asarray(D, np.float32)


def calls(N, K, d, L0):
    """Each operation as a function without arguments, and the mean number of codes in use."""
    X, D = planted(N, K, d, L0)
    problem, dictionary, data = jd.Problem(lam=LAM, offset=False), jd.Dictionary(jnp.asarray(D)), jnp.asarray(X)
    codes = jd.encode(problem, dictionary, data, tol=1e-5).codes
    sae, centre = jd.sae.tied_sae(dictionary, LAM), X.mean(0)
    solver = jd.solvers.Alternating(slots=64)  # fixed, so that sizes share programs
    streamed = partial(jd.fit_stream, problem, X, start=dictionary, key=jax.random.key(0), held_out=0)
    epoch, passes = jd.solvers.Online(epochs=1), jd.solvers.Online(epochs=0)
    return float(jnp.mean(jnp.sum(jd.dense_codes(codes, K) > 0, axis=1))), {
        "encode": lambda: jd.encode(problem, dictionary, data, tol=1e-5),
        "certify": lambda: jd.certify(problem, dictionary, codes, data),
        "fit": lambda: jd.fit(problem, data, start=dictionary, solver=solver, tol=1e-30, max_steps=STEPS),
        "stream's epoch": lambda: streamed(solver=epoch, passes=0),
        "stream's exact pass": lambda: streamed(solver=passes, passes=1),
        "audit's pass": lambda: stream(sae, X, centre, LAM),
    }


def cost(call):
    """CPU seconds and peak MiB above the start, the least and the most of some calls."""
    jax.block_until_ready(call())
    seconds, peaks = zip(*(once(call) for _ in range(REPEATS)), strict=True)
    return min(seconds), max(peaks)


def once(call):
    """CPU seconds of a call, and by how many MiB it raised resident memory: the high-water mark, set back before it."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    known = status.exists() and os.access(reset, os.W_OK)
    gc.collect()
    if known:
        ctypes.CDLL(None).malloc_trim(0)
        reset.write_text("5")
    before = resident(status, "VmRSS") if known else 0
    begin = time.process_time()
    found = call()
    jax.block_until_ready(found)
    seconds = time.process_time() - begin
    return seconds, (resident(status, "VmHWM") - before) / 1024 if known else float("nan")


def resident(status, field):
    return int(next(line for line in status.read_text().splitlines() if line.startswith(field)).split()[1])


def slope(sizes, values):
    if not np.all(np.asarray(values) > 0):
        return float("nan")
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def table(axis, found):
    """One line for each operation: what each size cost, exponents measured and in theory."""
    yield f"\n## {axis} = {', '.join(map(str, SIZES[axis]))}\n"
    rest = ", ".join(f"{name} = {size}" for name, size in BASE.items() if name != axis)
    active = [active for active, _ in found]
    yield f"{rest}; codes in use: {', '.join(f'{a:.1f}' for a in active)}.\n"
    yield "| operation | CPU ms | exponent | theory | peak MiB | exponent | theory |\n|---|---|---|---|---|---|---|"
    # Against L0 the codes in use count, which noise and lam move away from the planted number.
    sizes = active if axis == "L0" else SIZES[axis]
    for name, counts in COUNTS.items():
        seconds, memory = zip(*(costs[name] for _, costs in found), strict=True)
        at = [
            BASE | {"L0": used} | ({axis: size} if axis != "L0" else {})
            for used, size in zip(active, SIZES[axis], strict=True)
        ]
        theory = [slope(sizes, [count(**where) for where in at]) for count in counts]
        times, peaks = " ".join(f"{1e3 * s:.0f}" for s in seconds), " ".join(f"{m:.0f}" for m in memory)
        yield (
            f"| {name} | {times} | {slope(sizes, seconds):.2f} | {theory[0]:.2f} "
            f"| {peaks} | {slope(sizes, memory):.2f} | {theory[1]:.2f} |"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default=str(Path(__file__).with_suffix(".md")))
    parser.add_argument("--axes", nargs="+", choices=SIZES, default=list(SIZES))
    args = parser.parse_args()
    if platform.system() == "Linux" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        # Large arrays then come from the system and go back to it, so that the peak of one call is its own.
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**17)})
    begin, measured = time.perf_counter(), {}

    def at(where):
        key = tuple(where.values())
        if key not in measured:
            active, operations = calls(**where)
            measured[key] = active, {name: cost(call) for name, call in operations.items()}
        return measured[key]

    lines = [
        f"# Cost curves\n\n`python benchmarks/cost_curves.py`, {platform.machine()}, {os.cpu_count()} cores, float32, "
        f"{'numba kernels' if kernels() else 'plain JAX'}; lam = {LAM}, fit: {STEPS} alternating steps with their certificate."
    ]
    print(lines[0], flush=True)
    for axis in args.axes:
        for line in table(axis, [at(BASE | {axis: size}) for size in SIZES[axis]]):
            lines.append(line)
            print(line, flush=True)
    lines.append(f"\nAll of it took {time.perf_counter() - begin:.0f} s.")
    print(lines[-1])
    Path(args.out).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
