"""Polishing stays within the memory that its docstring states: no array of all rows, of rows by atoms, or of atoms by atoms."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
from watching import WATCH

SCRIPT = """
    import sys
    import jax, jax.numpy as jnp, numpy as np, jaxdict as jd

    K, d, k = int(sys.argv[2]), 8, 2
    X = np.load(sys.argv[1], mmap_mode="r")
    atoms = np.random.default_rng(1).normal(size=(K, d)).astype(np.float32)
    atoms = jnp.asarray(atoms / np.linalg.norm(atoms, axis=1, keepdims=True))
    sae = jd.sae.SAE(atoms.T, jnp.zeros(K), atoms, jnp.zeros(d), activation=jd.sae.Activation("topk", k=k))
    print(watched(lambda: jd.polish(sae, X, max_steps=1, encoder=sys.argv[3]))[1])
"""
# What compiling takes.
COMPILER = 250 * 2**20


def stated(n_atoms, d, n_rows, active, s=4):
    """The docstring's formula."""
    return n_atoms * d * (42 * s + 96) + 2**25 * (8 + s) + n_rows * (26 + 4 * active)


@pytest.mark.slow
@pytest.mark.parametrize(("n_atoms", "n_rows", "encoder"), [(24_576, 600, "fitted"), (1024, 200_000, "tied")])
def test_resident_memory_stays_within_the_formula(tmp_path, n_atoms, n_rows, encoder):
    d, active = 8, 2
    rows = np.random.default_rng(0).normal(size=(n_rows, d)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    command = [sys.executable, "-c", WATCH + textwrap.dedent(SCRIPT), str(tmp_path / "rows.npy"), str(n_atoms), encoder]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    bound = stated(n_atoms, d, n_rows, active) + COMPILER
    assert peak < bound
    assert bound < 4 * n_atoms * max(n_atoms, n_rows)  # neither atoms by atoms nor rows by atoms would fit
