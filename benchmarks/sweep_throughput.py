"""A sweep of 64 runs on digits (8 keys x 8 lams) against the same runs one by one; killed at half and resumed; writes sweep_throughput.md.

600 digits, 20 atoms, tol 1e-4, at most 200 steps, float64. "one by one" calls `jd.fit` for each, in a warm process (compiled before).
"""

import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from sklearn.datasets import load_digits

import jaxdict as jd

jax.config.update("jax_enable_x64", True)
LAMS, SEEDS, ATOMS = np.geomspace(0.05, 0.4, 8), range(8), 20
OPTIONS = {"tol": 1e-4, "max_steps": 200}


class Stop(Exception):
    """A kill in the middle."""


def timed(call):
    begin = time.perf_counter()
    out = call()
    return out, time.perf_counter() - begin


def main():
    X = load_digits().data[:600] / 16
    X = X - X.mean(0)
    X = X / np.sqrt((X**2).sum(1).mean())
    grid = {"lams": LAMS, "n_atoms": ATOMS, "seeds": SEEDS, **OPTIONS}

    def alone(lam, seed):
        done = jd.fit(jd.Problem(lam=float(lam)), X, ATOMS, key=jax.random.key(seed), **OPTIONS)
        return float(done.objective)

    alone(LAMS[0], 0)
    singles, single = timed(lambda: [alone(lam, seed) for lam in LAMS for seed in SEEDS])
    about = " ".join((__doc__ or "").split("\n\n")[1].split())
    lines = ["# A sweep's throughput", "", f"`python benchmarks/sweep_throughput.py`, 2 cores: {about}", ""]
    lines += ["| way | seconds | runs a second | against one by one |", "|---|---|---|---|"]

    def row(name, seconds):
        lines.append(f"| {name} | {seconds:.1f} | {64 / seconds:.2f} | {single / seconds:.2f} |")
        print(lines[-1], flush=True)

    row("one by one", single)
    for batch in (1, 8, 64):
        jd.sweep(X, **(grid | {"lams": LAMS[:1], "seeds": range(batch) if batch <= 8 else range(64)}), batch=batch)
        found, seconds = timed(lambda batch=batch: jd.sweep(X, **grid, batch=batch))
        row(f"sweep, {batch} a program", seconds)
        worst = max(abs(row["objective"] / one - 1) for row, one in zip(found.rows, singles, strict=True))
        print("largest relative difference of objectives", worst)
    path, seconds = timed(lambda: jd.sweep(X, **grid, path=True))
    row("sweep, continuation in lam", seconds)
    steps = sum(r["steps"] for r in found.rows), sum(r["steps"] for r in path.rows)
    with tempfile.TemporaryDirectory() as folder:

        def kill(done, total):
            if done >= total // 2:
                raise Stop

        try:
            jd.sweep(X, **grid, directory=folder, batch=8, progress=kill)
        except Stop:
            kept = len((Path(folder) / "rows.jsonl").read_text().splitlines())
        resumed, seconds = timed(lambda: jd.sweep(X, **grid, directory=folder, batch=8))
        worst = max(abs(row["objective"] / one - 1) for row, one in zip(resumed.rows, singles, strict=True))
    lines += [
        "",
        f"Killed with {kept} of 64 rows on disk and resumed: {seconds:.1f} s more, objectives within {worst:.0e} of single fits.",
    ]
    lines += [f"Steps in all: {steps[0]} from scratch, {steps[1]} along the path."]
    print("\n".join(lines[-3:]))
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
