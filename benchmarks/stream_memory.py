"""A million rows from a memory map: what `fit_stream` holds beyond the mapped file, beside the formula of its docstring.

    python benchmarks/stream_memory.py [--rows 1000000] [--dimensions 256] [--atoms 1024] [--epochs 1] [--passes 2] [--out FILE.md]

Planted rows of 12 atoms each, float32, written to a .npy file in `--folder` in pieces. The most memory of the process's own pages
(mapped files aside) is read ten times a second, before the run (Python, JAX, kernels loaded on a small job) and during it.
"""

import argparse
import os
import threading
import time
from pathlib import Path

import jax
import numpy as np
from streams import own_pages

import jaxdict as jd
from jaxdict.streaming.sums import chunk_rows

ACTIVE, NOISE, PIECE = 12, 0.1, 16384


class Watch:
    """The most memory of the process's own pages since `most` was last set to zero, in bytes."""

    def __init__(self):
        self.most = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self):
        while (pages := own_pages()) is not None:
            self.most = max(self.most, pages)
            time.sleep(0.1)


def planted(path: Path, rows: int, d: int, atoms: int) -> np.ndarray:
    """The file, made in pieces, and mapped again to be read only."""
    draw = np.random.default_rng(0)
    D = draw.normal(size=(atoms, d)).astype(np.float32)
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    out = np.lib.format.open_memmap(path, "w+", np.float32, (rows, d))
    for at in range(0, rows, PIECE):
        n = min(PIECE, rows - at)
        codes = np.zeros((n, atoms), np.float32)
        np.put_along_axis(codes, draw.integers(0, atoms, (n, ACTIVE)), draw.uniform(0.5, 1.5, (n, ACTIVE)), axis=1)
        out[at : at + n] = codes @ D + NOISE / np.sqrt(d) * draw.normal(size=(n, d))
    out.flush()
    del out
    return np.load(path, mmap_mode="r")


def formula(problem, rows: int, d: int, atoms: int, active: float) -> float:
    """Bytes of `fit_stream` in float32, as its docstring states them."""
    return atoms * d * (34 * 4 + 96) + chunk_rows(problem, atoms, d) * (16 * atoms + 40 * d) + rows * (2 + 4 * active)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=256)
    parser.add_argument("--atoms", type=int, default=1024)
    parser.add_argument("--lam", type=float, default=0.2)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("streams"))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    size = (given.rows, given.dimensions, given.atoms)
    X = planted(given.folder / "planted.npy", *size)
    problem, options = jd.Problem(lam=given.lam), {"key": jax.random.key(0)}
    watch = Watch()
    jd.fit_stream(problem, X[:4096], 64, passes=1, solver=jd.solvers.Online(epochs=1), **options)
    before, watch.most = watch.most, 0
    wall, cpu = time.perf_counter(), time.process_time()

    def callback(told):
        print(f"{time.perf_counter() - wall:.0f} s", told.stage, f"{told.step}/{told.max_steps}", end="\r", flush=True)

    online = jd.solvers.Online(epochs=given.epochs)
    found = jd.fit_stream(problem, X, given.atoms, passes=given.passes, solver=online, callback=callback, **options)
    wall, cpu, most = time.perf_counter() - wall, time.process_time() - cpu, watch.most
    codes = jd.encode(problem, found.dictionary, X[:8192], tol=1e-3, sparse=True).codes
    active = float(np.count_nonzero(np.asarray(codes.values), axis=1).mean())
    lines = [
        "# Memory of a stream",
        "",
        f"`python benchmarks/stream_memory.py`, {time.strftime('%Y-%m-%d')}, {len(os.sched_getaffinity(0))} cores: {given.rows:,} rows of "
        f"{given.dimensions} dimensions in a mapped file of {X.nbytes / 2**30:.2f} GiB, K = {given.atoms:,}, lam = {given.lam:g}, "
        f"{active:.1f} active atoms a row.",
        "",
        "| | MiB |",
        "| --- | --- |",
        f"| the process before the run | {before / 2**20:.0f} |",
        f"| its peak during the run | {most / 2**20:.0f} |",
        f"| the run's own, by difference | {(most - before) / 2**20:.0f} |",
        f"| the docstring's formula | {formula(problem, *size, active) / 2**20:.0f} |",
        "",
        f"{wall:.0f} s, {cpu:.0f} CPU s: {found.message()}",
    ]
    given.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
