"""What plain JAX makes of the device at hand: exact codes counted in dense passes, certificates, fits; under three minutes on one GPU.

    python benchmarks/accelerator.py [--quick] [--out FILE.md] [--seconds 170]

Planted data in float32. The unit is one dense pass `X D^T` at the highest precision, over the same rows. Seconds are medians of calls
after a first one, which compiles. Gaps (theory.md T2, over the objective) are recomputed from the codes alone, by NumPy in float64.
Parts that no time is left for are left out, and said to be; `--quick` takes sizes that a CPU does in a minute.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

import jaxdict as jd

# atoms, dimensions, rows; active atoms a row, noise, lam
SIZES = ((2048, 256, 16_384, 20, 0.4, 0.2), (16_384, 768, 8192, 30, 1.4, 0.3), (65_536, 2304, 2048, 40, 1.4, 0.25))
QUICK = ((512, 64, 1024, 8, 0.4, 0.3), (2048, 256, 1024, 20, 0.4, 0.2))
TOL = 1e-6
CHECKED = 64
# By a part of the device's name: peak flops a second in float32 and in what jax multiplies by default (dense, data sheets).
PEAKS = {
    "H100 PCIe": (51e12, 378e12),
    "H100": (67e12, 495e12),
    "H200": (67e12, 495e12),
    "A100": (19.5e12, 156e12),
    "L4": (30e12, 60e12),
    "V100": (15.7e12, 15.7e12),
    "T4": (8.1e12, 8.1e12),
}


def seconds(call, *args, repeats: int = 3) -> float:
    """The median time of `call(*args)`, after a first one."""
    times = []
    for _ in range(1 + repeats):
        begin = time.perf_counter()
        jax.block_until_ready(call(*args))
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def planted(k: int, d: int, n: int, active: int, noise: float):
    """Rows that are sums of a few atoms and noise, and the atoms; made on the device."""
    keys = jax.random.split(jax.random.key(0), 4)
    D = unit(jax.random.normal(keys[0], (k, d)))
    values = jax.random.uniform(keys[1], (n, active), minval=0.5, maxval=1.5)
    used = jax.random.randint(keys[2], (n, active), 0, k)
    X = noise / np.sqrt(d) * jax.random.normal(keys[3], (n, d))
    for slot in range(active):
        X = X + values[:, slot, None] * D[used[:, slot]]
    return X, D


def unit(rows):
    return rows / jnp.linalg.norm(rows, axis=1, keepdims=True)


def moved(D):
    """The atoms, each moved by a hundredth of its norm."""
    return unit(D + 0.01 * unit(jax.random.normal(jax.random.key(1), D.shape)))


def dense_pass(precision):
    return jax.jit(lambda X, D: jnp.matmul(X, D.T, precision=precision))


@jax.jit
def encoded(X, D, start, lam) -> jd.Encoding:
    return jd.encode(jd.Problem(lam=lam), jd.Dictionary(D), X, tol=TOL, method="working_set", sparse=True, codes=start)


def worst_gap(codes: jd.SparseCodes, X, D, lam: float) -> float:
    """The largest T2 gap over the objective of some rows, in float64."""
    indices, values, X, D = np.asarray(codes.indices), *(np.asarray(v, np.float64) for v in (codes.values, X, D))
    r = X - np.einsum("ns,nsd->nd", values, D[indices])
    theta = r / np.maximum(1, (r @ D.T).max(axis=1) / lam)[:, None]
    primal = 0.5 * (r**2).sum(axis=1) + lam * values.sum(axis=1)
    gap = primal - 0.5 * (X**2).sum(axis=1) + 0.5 * ((X - theta) ** 2).sum(axis=1)
    return float(np.max(gap / primal))


def unsolved(done: jd.Encoding, X, D, lam: float) -> float:
    """The share of rows whose own gap is above the tolerance."""
    assert isinstance(done.codes, jd.SparseCodes)
    r = jd.residual(jd.Dictionary(D), done.codes, X)
    primal = 0.5 * jnp.sum(r * r, axis=1) + lam * jnp.sum(done.codes.values, axis=1)
    return float(jnp.mean(done.gap > 1.001 * TOL * primal))


def codes_lines(sizes, peaks) -> Iterator[str]:
    yield "\n## Exact codes\n"
    yield (
        "| atoms, dimensions, rows | call | seconds | dense passes | rounds | worst relative gap | rows unsolved | of peak |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for k, d, n, active, noise, lam in sizes:
        X, D = planted(k, d, n, active, noise)
        flops, label, unit_of_time = 2 * n * k * d, f"{k:,}, {d}, {n:,}", 1.0
        for precision, peak in zip(("highest", None), peaks or (None, None), strict=True):
            taken = seconds(dense_pass(precision), X, D)
            unit_of_time = taken if precision else unit_of_time
            share = f"{flops / taken / peak:.0%}" if peak else f"{flops / taken / 1e9:,.0f} GFLOP/s"
            name = f"`X D^T`, {precision or 'default'} precision"
            yield f"| {label} | {name} | {taken:.4f} | {taken / unit_of_time:.2f} | | | | {share} |"
        start = None
        for name, atoms in (("encode", D), ("encode, warm, atoms moved 1%", moved(D))):
            done = encoded(X, atoms, start, lam)
            taken = seconds(encoded, X, atoms, start, lam)
            some = jax.tree.map(lambda leaf: leaf[:CHECKED], done.codes)
            gap = worst_gap(some, X[:CHECKED], atoms, float(np.float32(lam)))
            facts = f"{int(done.steps)} | {gap:.1e} | {unsolved(done, X, atoms, lam):.2%}"
            yield f"| {label} | {name} | {taken:.4f} | {taken / unit_of_time:.1f} | {facts} | |"
            start = done.codes
        yield f"| {label} | active atoms a row: {float(jnp.mean(jnp.sum(start.values > 0, axis=1))):.1f} | | | | | | |"


def certify_lines(sizes) -> Iterator[str]:
    k, d, n, active, noise, lam = sizes[0]
    X, D = planted(k, d, n, active, noise)
    codes = encoded(X, D, None, lam).codes
    certify = jax.jit(lambda X, codes: jd.certify(jd.Problem(lam=lam), jd.Dictionary(D), codes, X))
    taken, one = seconds(certify, X, codes), seconds(dense_pass("highest"), X, D)
    told = certify(X, codes)
    yield "\n## A certificate, and fits\n"
    yield "| what | seconds | |\n|---|---|---|"
    yield (
        f"| certify, {k:,} atoms, {d} dimensions, {n:,} rows | {taken:.4f} | {taken / one:.1f} dense passes; codes' defect "
        f"{float(told.stationarity.codes):.1e}, gap over the objective {float(told.shares.duality_gap):.1e} |"
    )


def step_lines(quick: bool) -> Iterator[str]:
    k, d, n, steps = (64, 32, 512, 6) if quick else (512, 256, 8192, 8)
    X, _ = planted(k, d, n, 8, 0.4)
    times = [time.perf_counter()]
    jd.fit(
        jd.Problem(lam=0.3),
        X,
        k,
        key=jax.random.key(2),
        max_steps=steps,
        callback=lambda _: times.append(time.perf_counter()),
    )
    # The first steps compile.
    each = statistics.median(b - a for a, b in pairwise(times[2:]))
    yield f"| a step of fit, {k} atoms, {d} dimensions, {n:,} rows | {each:.4f} | median of {len(times) - 3} |"


def batch_lines(quick: bool) -> Iterator[str]:
    runs, n = (8, 100) if quick else (64, 400)
    X, _ = planted(12, 8, n, 3, 0.3)
    options = {"tol": 1e-3, "max_steps": 100}
    lams, keys = jnp.linspace(0.3, 0.6, runs), jax.random.split(jax.random.key(3), runs)

    def alone(i):
        return jd.fit(jd.Problem(lam=lams[i]), X, 12, key=keys[i], **options).objective

    single = seconds(lambda: [alone(i) for i in (0, runs - 1)], repeats=1) / 2
    together = seconds(lambda: jd.fit_batch(jd.Problem(lam=lams), X, 12, keys=keys, **options).objective, repeats=1)
    yield f"| fit, 12 atoms, 8 dimensions, {n} rows | {single:.3f} | one by one (mean of 2) |"
    yield f"| fit_batch of {runs} such runs | {together:.3f} | {runs * single / together:.1f} times one by one |"


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out")
    parser.add_argument("--seconds", type=float, default=170)
    args = parser.parse_args(arguments)
    begin, device = time.perf_counter(), jax.devices()[0]
    peaks = next((peak for name, peak in PEAKS.items() if name in device.device_kind), None)
    sizes = QUICK if args.quick else SIZES
    lines = []

    def say(line):
        lines.append(line)
        print(line, flush=True)
        if args.out:
            with open(args.out, "w") as file:
                file.write("\n".join(lines) + "\n")

    say(f"# {device.device_kind} ({device.platform}), jax {jax.__version__}, float32, relative gap {TOL}")
    parts = {
        "exact codes": lambda: codes_lines(sizes, peaks),
        "certify": lambda: certify_lines(sizes),
        "a step of fit": lambda: step_lines(args.quick),
        "fit_batch": lambda: batch_lines(args.quick),
    }
    for name, part in parts.items():
        if time.perf_counter() - begin > args.seconds:
            say(f"| {name}: left out, the time was spent | | |")
            continue
        for line in part():
            say(line)
    say(f"\n{time.perf_counter() - begin:.0f} seconds in all, with compiling.")


if __name__ == "__main__":
    main()
