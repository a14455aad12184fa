"""Every public function, composed in every way that jax users compose functions: one table, every column."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from columns import COLUMNS, arguments, compare, densified, is_key, reference
from public_cases import ATOMS, CASES, COLUMN_HOLES, EXEMPT, public_functions

import jaxdict as jd

MESHES = ("Auto", "Explicit")
REFERENCE = Path(__file__).parents[1] / "reference"


def test_every_public_function_has_a_row():
    with_row = {name.split(":")[0] for name in CASES}
    assert public_functions() - with_row - set(EXEMPT) == set()
    assert not with_row & set(EXEMPT)
    assert {column for case in CASES.values() for column in case.holes} <= {*COLUMNS, *MESHES}


# Columns in which every case is compiled by the slow tests, and only traced by the default ones: what goes wrong shows in the trace.
IN_FULL_IF_SLOW = ("closed", "scan", "vmap", "derivative", "float32")


@pytest.mark.parametrize("column", [column for column in COLUMNS if column != "derivative"])
@pytest.mark.parametrize("name", CASES)
def test_cell(name, column):
    traced = CASES[name].heavy or column in IN_FULL_IF_SLOW
    if traced and column in CASES[name].holes:
        return  # a hole need not show in the trace
    full = not traced
    run(name, column, lambda: COLUMNS[column](name, full=full))


@pytest.mark.parametrize("name", (name for name in CASES if name.endswith(": sparse codes")))
def test_sparse_codes_give_what_dense_ones_give(name):
    given = arguments(name)
    given["S"] = jd.dense_codes(given["S"], ATOMS)
    compare(name, densified(reference(name)), CASES[name].call(**given))


@pytest.mark.slow
@pytest.mark.parametrize("column", ["jit", *IN_FULL_IF_SLOW])
@pytest.mark.parametrize("name", CASES)
def test_cell_in_full(name, column):
    if CASES[name].heavy or column != "jit":
        run(name, column, lambda: COLUMNS[column](name))


@pytest.fixture(scope="module")
def on_mesh(request, tmp_path_factory):
    """Errors by mesh and case: one process a mesh, for the cases that were asked for."""
    wanted = [
        item.callspec.params
        for item in request.session.items
        if getattr(item, "originalname", None) in ("test_mesh", "test_mesh_of_dear_cases")  # doctests have none
    ]
    path = tmp_path_factory.mktemp("matrix") / "references"
    names = {params["name"] for params in wanted}
    path.write_bytes(pickle.dumps({name: plain(reference(name)) for name in CASES if name in names}))
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    environment = {
        **os.environ,
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
        "NPROC": "32",
        "PYTHONPATH": str(REFERENCE),
    }
    found = {}
    for kind in {params["kind"] for params in wanted}:
        done = subprocess.run(
            [sys.executable, "on_mesh.py", kind, str(path), *(n for n in CASES if n in names)],
            env=environment, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=500, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr[-3000:]
        found[kind] = json.loads(done.stdout.splitlines()[-1])
    return found


def plain(tree):
    """Without keys and in numpy, to be read in another process."""
    return jax.tree.map(lambda leaf: np.zeros(0) if hasattr(leaf, "dtype") and is_key(leaf) else np.asarray(leaf), tree)


# A mesh compiles every case anew.
@pytest.mark.parametrize("name", (name for name in CASES if not CASES[name].heavy))
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_mesh(on_mesh, name, kind):
    run(name, kind, lambda: on_one_mesh(on_mesh[kind], name))


@pytest.mark.slow
@pytest.mark.parametrize("name", (name for name in CASES if CASES[name].heavy))
@pytest.mark.parametrize("kind", MESHES)
def test_mesh_of_dear_cases(on_mesh, name, kind):
    run(name, kind, lambda: on_one_mesh(on_mesh[kind], name))


def on_one_mesh(errors, name):
    error = errors.get(name)
    assert error is None, error


def run(name, column, check):
    """The check; where the table names a hole it must fail, so that no hole outlives its reason."""
    if column in COLUMN_HOLES:
        pytest.skip(COLUMN_HOLES[column])
    reason = CASES[name].holes.get(column)
    if reason is None:
        return check()
    try:
        check()
    except Exception:
        pytest.skip(reason)
    pytest.fail(f"{name} holds under {column!r} now: take the hole out of public_cases.py")
