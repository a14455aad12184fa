"""Time and memory of an audit against rows: d_sae = 4096, d_in = 384, planted sparse activations; `python benchmarks/audit.py [rows ...]`.

Each size runs in a process of its own, so that peak memory is its own. Prints one line a size: seconds by stage, peak memory.
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

D_IN, D_SAE, L0, LAM, BIAS = 384, 4096, 30, 0.15, 0.55


def write_activations(path: Path, rows: int, atoms: np.ndarray) -> None:
    """Sparse sums of random atoms plus noise, float16, written block by block."""
    rng = np.random.default_rng(1)
    out = np.lib.format.open_memmap(path, "w+", np.float16, (rows, D_IN))
    for start in range(0, rows, 10_000):
        n = min(10_000, rows - start)
        block = 0.05 * rng.normal(size=(n, D_IN)).astype(np.float32)
        for _ in range(L0):
            block += rng.uniform(0.3, 1.0, (n, 1)).astype(np.float32) * atoms[rng.integers(0, D_SAE, n)]
        out[start : start + n] = block
    out.flush()


def one(rows: int) -> None:
    """Audit so many rows and print what it took as JSON."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp

    import jaxdict as jd

    rng = np.random.default_rng(0)
    atoms = rng.normal(size=(D_SAE, D_IN)).astype(np.float32)
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    sae = jd.sae.tied_sae(jd.Dictionary(jnp.asarray(atoms), jnp.zeros(D_IN, jnp.float32)), BIAS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "acts.npy"
        write_activations(path, rows, atoms)
        stages: dict[str, float] = {}
        last = [time.perf_counter(), ""]

        def tell(stage, done, total):
            now = time.perf_counter()
            stages[last[1]] = stages.get(last[1], 0.0) + now - last[0]
            last[:] = [now, stage]

        begin = time.perf_counter()
        found = jd.audit(sae, np.load(path, mmap_mode="r"), LAM, progress=tell)
        seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    stages.pop("", None)
    facts = {"rows": rows, "seconds": seconds, "peak_gib": peak, "l0": found.measures["l0"], "stages": stages}
    print(json.dumps(facts), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int, nargs="*", default=[50_000, 100_000, 200_000])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        return one(arguments.one)
    print(f"d_sae = {D_SAE}, d_in = {D_IN}; seconds by stage")
    for rows in arguments.rows:
        done = subprocess.run([sys.executable, __file__, "--one", str(rows)], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr[-3000:])
        facts = json.loads(done.stdout.splitlines()[-1])
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in facts["stages"].items())
        print(
            f"{rows:>8} rows  {facts['seconds']:6.1f} s  {facts['peak_gib']:.2f} GiB  L0 {facts['l0']:.1f}  ({stages})"
        )
    return None


if __name__ == "__main__":
    main()
