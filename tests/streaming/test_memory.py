"""A memory map is fitted in the memory that the docstring states, beyond the mapped file."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
from watching import WATCH

SCRIPT = """
    import gc, sys
    import jax, numpy as np, jaxdict as jd
    from jaxdict.streaming import sums

    sums.MOST_ROWS = 512  # the default's chunks are as large as this test's data
    X, K = np.load(sys.argv[1], mmap_mode="r"), 256

    def fit(rows):
        solver = jd.solvers.Online(batch_size=512, epochs=0.2)
        options = {"held_out": X[:512], "passes": 2, "solver": solver}
        return jd.fit_stream(jd.Problem(lam=0.3), rows, K, key=jax.random.key(0), **options)

    fit(X[:8192])  # everything is compiled: both are whole numbers of chunks
    gc.collect()
    found, taken = watched(lambda: fit(X))
    codes = jd.encode(jd.Problem(lam=0.3), found.dictionary, X[:500], sparse=True).codes
    print(taken, float(np.mean(np.sum(np.asarray(codes.values) != 0, axis=1))), int(found.passes))
"""


@pytest.mark.slow
def test_resident_memory_stays_within_the_formula(tmp_path):
    n, d, k, chunk, size = 96 * 512, 16, 256, 512, 4
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(n, d)).astype(np.float32) / 4)
    command = [sys.executable, "-c", WATCH + textwrap.dedent(SCRIPT), str(tmp_path / "rows.npy")]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    peak, active, passes = int(out[0]), float(out[1]), int(out[2])
    stated = k * d * (34 * size + 96) + chunk * (16 * k + 40 * d) + n * (2 + 4 * active)
    assert passes == 2
    # What the allocator does not give back comes on top.
    assert peak < stated + 12 * 2**20
    assert stated + 12 * 2**20 < n * k * size / 2
