"""Time and memory of an audit of planted sparse activations: `python benchmarks/audit.py [--d-in 384] [--d-sae 4096] [rows ...]`.

Each size runs in a process of its own, so that peak memory is its own. A line a size: seconds by stage and peak memory, beside one
forward pass of the SAE over the same rows (encoder and decoder, chunk by chunk, compiled, float32) in the same process.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

L0, LAM, BIAS = 30, 0.15, 0.55


def write_activations(path: Path, rows: int, atoms: np.ndarray) -> None:
    """Sparse sums of random atoms plus noise, float16, written block by block."""
    rng = np.random.default_rng(1)
    d_sae, d_in = atoms.shape
    out = np.lib.format.open_memmap(path, "w+", np.float16, (rows, d_in))
    for start in range(0, rows, 10_000):
        n = min(10_000, rows - start)
        block = 0.05 * np.sqrt(384 / d_in) * rng.normal(size=(n, d_in)).astype(np.float32)
        for _ in range(L0):
            block += rng.uniform(0.3, 1.0, (n, 1)).astype(np.float32) * atoms[rng.integers(0, d_sae, n)]
        out[start : start + n] = block
    out.flush()


def forward_seconds(sae, X) -> float:
    """One forward pass over all rows, after one that compiles."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    from jaxdict.auditing.streaming import chunk_rows

    size = chunk_rows(len(X), sae.d_sae)
    forward = eqx.filter_jit(lambda sae, x: jnp.sum(sae(x)))
    sae = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), sae)
    chunk = lambda start: jnp.asarray(np.asarray(X[start : start + size], np.float32))  # noqa: E731
    jax.block_until_ready(forward(sae, chunk(0)))
    begin = time.perf_counter()
    for start in range(0, len(X) - size + 1, size):
        jax.block_until_ready(forward(sae, chunk(start)))
    return (time.perf_counter() - begin) * len(X) / (len(X) // size * size)


def one(rows: int, d_in: int, d_sae: int, minutes: float | None, x64: bool) -> None:
    """Audit so many rows and print what it took as JSON."""
    import jax

    jax.config.update("jax_enable_x64", x64)
    import jax.numpy as jnp

    import jaxdict as jd

    rng = np.random.default_rng(0)
    atoms = rng.normal(size=(d_sae, d_in)).astype(np.float32)
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    sae = jd.sae.tied_sae(jd.Dictionary(jnp.asarray(atoms), jnp.zeros(d_in, jnp.float32)), BIAS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "acts.npy"
        write_activations(path, rows, atoms)
        stages: dict[str, float] = {}
        last = [time.perf_counter(), ""]

        def tell(stage, done, total):
            now = time.perf_counter()
            stages[last[1]] = stages.get(last[1], 0.0) + now - last[0]
            last[:] = [now, stage]

        X = np.load(path, mmap_mode="r")
        begin = time.perf_counter()
        found = jd.audit(sae, X, LAM, progress=tell, minutes=minutes)
        seconds = time.perf_counter() - begin
        page = found.to_html(Path(folder) / "page.html").stat().st_size
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        forward = forward_seconds(sae, X)
    stages.pop("", None)
    facts = {"rows": rows, "seconds": seconds, "peak_gib": peak, "l0": found.measures["l0"], "stages": stages}
    print(json.dumps(facts | {"forward": forward, "page_mb": page / 1e6}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int, nargs="*", default=[50_000, 100_000, 200_000])
    parser.add_argument("--d-in", type=int, default=384)
    parser.add_argument("--d-sae", type=int, default=4096)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--float32", action="store_true", help="jax's default precision instead of float64")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        return one(given.one, given.d_in, given.d_sae, given.minutes, not given.float32)
    print(f"d_in = {given.d_in}, d_sae = {given.d_sae}; seconds by stage (in forward passes)")
    for rows in given.rows:
        done = subprocess.run([sys.executable, *sys.argv, "--one", str(rows)], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr[-3000:] or f"killed by signal {-done.returncode}")
        facts = json.loads(done.stdout.splitlines()[-1])
        unit = facts["forward"]
        stages = ", ".join(f"{name} {s:.1f} ({s / unit:.1f})" for name, s in facts["stages"].items())
        print(
            f"{rows:>8} rows  {facts['seconds']:6.1f} s  {facts['seconds'] / unit:.1f} forward passes of {unit:.1f} s  "
            f"{facts['peak_gib']:.2f} GiB  L0 {facts['l0']:.1f}  page {facts['page_mb']:.1f} MB  ({stages})",
            flush=True,
        )
    return None


if __name__ == "__main__":
    main()
