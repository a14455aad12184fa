"""Cases that users and reviewers reported, each with the value that is right or the error that names itself.

Compositions of every public function are in matrix/test_matrix.py, refusals in matrix/test_refusals.py; what belongs to one part
is tested there (sweeps and their names in test_sweeps.py, shards' order in test_files.py, killed writes and full disks in
test_storage.py, Ctrl-C at a terminal in test_cli.py, threads and shards of the kernels in encoding/test_compiled.py, statuses in
test_fitting.py and encoding/test_encode.py). Here are the programs as they were reported.
"""

import functools
import json
import os
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import compilations, own

import jaxdict as jd
from jaxdict.certificates.births import birth

ALTERNATING = jd.solvers.Alternating()


def point(dtype=np.float64, n=24, d=4, k=6, seed=0):
    draw = np.random.default_rng(seed)
    atoms = draw.normal(size=(k, d))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    D = jd.Dictionary(jnp.asarray(atoms, dtype), jnp.zeros(d, dtype))
    return D, jnp.asarray(np.maximum(draw.normal(size=(n, k)), 0), dtype), jnp.asarray(draw.normal(size=(n, d)), dtype)


# Composition


def codes_at(lam):
    """Codes of a closed-over point."""
    D, _, X = point()
    return jd.encode(jd.Problem(lam=lam, offset=False), D, X).codes


LAMS = jnp.array([0.2, 0.3])
COMPOSITIONS = {
    "jit": lambda: jax.jit(codes_at)(0.2),
    "scan": lambda: jax.lax.scan(lambda c, lam: (c, codes_at(lam)), 0.0, LAMS)[1][0],
    "map": lambda: jax.lax.map(codes_at, LAMS)[0],
    "checkpoint": lambda: jax.checkpoint(codes_at)(0.2),
    "jit of vmap": lambda: jax.jit(jax.vmap(codes_at))(LAMS)[0],
}


@pytest.mark.parametrize("how", COMPOSITIONS)
def test_encode_with_a_closed_over_X_composes(how):
    np.testing.assert_allclose(COMPOSITIONS[how](), codes_at(0.2), rtol=1e-9, atol=1e-12)


def test_encode_with_a_closed_over_X_has_a_gradient_under_jit():
    total = lambda lam: codes_at(lam).sum()  # noqa: E731
    difference = (total(0.2 + 1e-6) - total(0.2 - 1e-6)) / 2e-6
    np.testing.assert_allclose(jax.jit(jax.grad(total))(0.2), difference, rtol=1e-5)


def test_a_closed_over_numpy_array_is_checked_too():
    D, _, X = point()
    bad = np.asarray(X).copy()
    bad[3, 1] = np.nan
    with pytest.raises(ValueError, match="first in row 3"):
        jax.jit(lambda lam: jd.encode(jd.Problem(lam=lam), D, bad).codes)(0.2)


def test_encoders_compose_under_jit():
    D, Z, X = point()
    np.testing.assert_allclose(jax.jit(lambda lam: jd.sae.tied_sae(D, lam).b_enc)(0.3), -0.3 * np.ones(6))
    fitted = jd.sae.fitted_sae(D, 0.3, X, Z, steps=3).W_enc
    traced = jax.jit(lambda X: jd.sae.fitted_sae(D, 0.3, X, Z, steps=3).W_enc)(X)
    np.testing.assert_allclose(traced, fitted, rtol=1e-9, atol=1e-12)
    closed = jax.jit(lambda alpha: jd.recovery.reweight(jnp.array([1.0, 3.0]), alpha))(2.0)
    np.testing.assert_allclose(closed, [0.25, 2.25])


@functools.cache
def strict_start():
    """Planted data whose fit ends at a strict minimum, and a dictionary near it."""
    planted = jd.synthetic.independent(jax.random.key(0), 60, 3, noise=0.05)
    return planted.X, planted.dictionary


@pytest.mark.slow
def test_implicit_fits_have_a_gradient_in_a_python_float():
    X, D = strict_start()

    def mean_code(lam):
        return jd.fit(jd.Problem(lam=lam, offset=False), X, start=D, implicit=True, tol=1e-10).codes.mean()

    slope = jax.grad(mean_code)(0.08)
    np.testing.assert_allclose(slope, (mean_code(0.08 + 1e-5) - mean_code(0.08 - 1e-5)) / 2e-5, rtol=1e-3)


@pytest.mark.slow
def test_a_problem_whose_lam_was_replaced_by_a_python_number():
    D, Z, X = point()
    problem = jd.Problem(lam=0.3)
    replaced = eqx.tree_at(lambda p: p.lam, problem, 0.3)
    for call in (
        lambda p: jd.encode(p, D, X).codes,
        lambda p: jd.certify(p, D, Z, X).objective,
        lambda p: jd.objective(p, D, Z, X),
        lambda p: jd.fit(p, X, start=D, solver=ALTERNATING, max_steps=2).objective,
    ):
        np.testing.assert_allclose(call(replaced), call(problem), rtol=1e-12)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
import jaxdict as jd
draw = np.random.default_rng(0)
X = draw.normal(size=(4096, 16)).astype(np.float32)
atoms = draw.normal(size=(64, 16)).astype(np.float32)
D = jd.Dictionary(atoms / np.linalg.norm(atoms, axis=1, keepdims=True), np.zeros(16, np.float32))
problem = jd.Problem(lam=0.5)
alone = np.asarray(jd.encode(problem, D, X, tol=1e-5).codes)
mesh = jax.make_mesh((8,), ("s",))
rows = jax.device_put(X, NamedSharding(mesh, P("s", None)))
for sparse in (False, True):
    done = jd.encode(problem, D, rows, tol=1e-5, sparse=sparse, slots=32 if sparse else None)
    np.testing.assert_allclose(jd.dense_codes(done.codes, 64), alone, atol=2e-3)
    for leaf in jax.tree.leaves(done.codes):
        shapes = {shard.data.shape[0] for shard in leaf.addressable_shards}
        assert shapes == {512}, f"codes are not where their samples are: {shapes}"
within = jax.shard_map(
    lambda X: jd.encode(problem, D, X, tol=1e-5, method="working_set").codes, mesh=mesh, in_specs=P("s"), out_specs=P("s")
)
np.testing.assert_allclose(jax.jit(within)(rows), alone, atol=2e-3)
print("done")
"""


@pytest.mark.slow
def test_samples_spread_over_eight_devices_are_encoded_where_they_are(on_eight_devices):
    assert on_eight_devices(SHARDED).strip().endswith("done")


def test_default_paths_under_jaxs_own_checks():
    D, _, X = point()
    with jax.debug_nans(True), jax.numpy_dtype_promotion("strict"):
        problem = jd.Problem(lam=0.3)
        done = jd.encode(problem, D, X)
        jd.certify(problem, D, done.codes, X)
        jd.fit(problem, X, start=D, max_steps=3)
        jd.fit(problem, X, start=D, max_steps=3, solver=ALTERNATING)


def compiled_by(call) -> list[str]:
    with compilations() as names:
        jax.block_until_ready(jax.tree.leaves(call()))
    return own(names)


def test_a_fit_compiles_once_however_its_numbers_are_written():
    D, _, X = point()

    def fit(lam=0.1, tol=1e-3, **more):
        return jd.fit(jd.Problem(lam=lam), X, start=D, tol=tol, solver=ALTERNATING, max_steps=3, **more)

    fit(), fit(callback=lambda progress: None)  # warm
    for call in (
        lambda: fit(lam=jnp.float64(0.2)),
        lambda: fit(lam=np.float64(0.2)),
        lambda: fit(tol=1),
        lambda: fit(tol=np.float64(1e-2)),
        lambda: fit(callback=lambda progress: None),
    ):
        assert compiled_by(call) == []


def test_a_second_training_compiles_nothing():
    _, _, X = point()
    train = lambda lam: jd.sae.train(X, 6, key=jax.random.key(0), lam=lam, steps=3, batch_size=8)  # noqa: E731
    train(0.1)
    assert compiled_by(lambda: train(0.2).W_dec) == []


CACHED = """
import json, jax, numpy as np
missed, met = [], []
jax.monitoring.register_event_listener(
    lambda event, **about: (missed if event.endswith("cache_misses") else met).append(1) if "compilation_cache" in event else None
)
import jaxdict as jd
draw = np.random.default_rng(0)
X = draw.normal(size=(32, 4)).astype(np.float32)
D = jd.Dictionary(np.eye(4, dtype=np.float32), np.zeros(4, np.float32))
jd.encode(jd.Problem(lam=0.3), D, X)
%s
print(json.dumps(len(missed)))
"""


ONE_STAGE = "jd.fit(jd.Problem(lam=0.3), X, start=D, solver=jd.solvers.Alternating(), max_steps=2)"
WHOLE_FIT = """
stages = set()
jd.fit(jd.Problem(lam=0.3), X, start=D, tol=1e-5, callback=lambda progress: stages.add(progress.stage))
assert stages == {"Alternating", "Newton"}, stages
"""


@pytest.mark.slow
@pytest.mark.parametrize("fit", [ONE_STAGE, WHOLE_FIT], ids=["one stage", "whole fit"])
def test_a_second_process_reuses_what_the_first_compiled(tmp_path, fit):
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    missed = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", CACHED % fit],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
        missed.append(json.loads(done.stdout.splitlines()[-1]))
    assert missed[0] > 0
    assert missed[1] == 0


def test_an_exception_in_a_callback_arrives_as_it_is_with_what_was_reached():
    D, _, X = point()

    class Enough(Exception):
        pass

    def stop(progress):
        if progress.step == 2:
            raise Enough

    with pytest.raises(Enough) as caught:
        jd.fit(jd.Problem(lam=0.1), X, start=D, tol=0, solver=ALTERNATING, max_steps=50, callback=stop)
    assert int(caught.value.solution.steps) == 2
    assert "interrupted" in caught.value.solution.message()


# Wrong without a word


@pytest.mark.parametrize("method", ["auto", "working_set", "gradient"])
def test_float32_codes_are_right_at_every_scale(method):
    D, _, X = point(np.float32)
    tol = 1e-4 if method == "gradient" else 1e-6
    ordinary = jd.encode(jd.Problem(lam=0.3), D, X, method=method, tol=tol)
    for scale in (1e-30, 1e-20, 1e-15, 1e15, 1e20, 1e30):
        scale = np.float32(scale)
        done = jd.encode(jd.Problem(lam=np.float32(0.3) * scale), D, X * scale, method=method, tol=tol)
        np.testing.assert_allclose(
            np.asarray(done.codes) / scale, ordinary.codes, atol=1e-2 if method == "gradient" else 1e-4
        )
        assert int(done.status) == int(ordinary.status), done.message()


@pytest.mark.parametrize(
    "scale", [pytest.param(1e-30, marks=pytest.mark.slow), pytest.param(1e-15, marks=pytest.mark.slow), 1e30]
)
def test_float32_fits_are_right_at_every_scale(scale):
    D, _, X = point(np.float32)
    fit = lambda s: jd.fit(jd.Problem(lam=np.float32(0.3 * s)), X * np.float32(s), start=D, tol=1e-3, max_steps=300)  # noqa: E731
    ordinary, done = fit(1.0), fit(scale)
    assert int(done.status) == int(ordinary.status) == 0, done.message()
    np.testing.assert_allclose(done.dictionary.atoms, ordinary.dictionary.atoms, atol=2e-2)


def test_a_birth_has_the_derivative_of_its_gain():
    D, Z, X = point()
    gain = lambda X: birth(jd.Problem(lam=0.2), D, 0 * Z, X).gain  # noqa: E731
    way = jnp.asarray(np.random.default_rng(1).normal(size=X.shape))
    difference = (gain(X + 1e-6 * way) - gain(X - 1e-6 * way)) / 2e-6
    np.testing.assert_allclose(jax.jvp(gain, (X,), (way,))[1], difference, rtol=1e-4)
    np.testing.assert_allclose(jnp.vdot(jax.grad(gain)(X), way), difference, rtol=1e-4)


@pytest.mark.slow
def test_the_offset_of_the_antipodal_pair_is_flat_and_said_to_be():
    X = np.concatenate([np.linspace(1, 2, 20), -np.linspace(1, 2, 20)])[:, None]
    problem, D = jd.Problem(lam=0.3), jd.Dictionary(jnp.array([[1.0], [-1.0]]), jnp.zeros(1))
    codes = jd.encode(problem, D, X, tol=1e-14).codes
    told = jd.certify(problem, D, codes, X, curvature=True)
    assert "flat" in told.message()
    assert "so a local minimum" not in told.message()


@pytest.mark.slow
def test_plain_jax_solves_thirteen_active_atoms_of_sixty_four_slots():
    draw = np.random.default_rng(0)
    atoms = draw.normal(size=(256, 32))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    D = jd.Dictionary(jnp.asarray(atoms), jnp.zeros(32))
    X = np.maximum(draw.normal(size=(8, 256)), 0) * (draw.uniform(size=(8, 256)) < 0.05) @ atoms
    for slots in (64, 128):
        done = jd.encode(jd.Problem(lam=0.05), D, X, method="working_set", slots=slots, tol=1e-9)
        assert int((np.asarray(done.codes) > 0).sum(axis=1).max()) >= 13
        assert int(done.status) == 0, done.message()
    right = jd.encode(jd.Problem(lam=0.05), D, X, tol=1e-12).codes
    np.testing.assert_allclose(done.codes, right, atol=1e-6)


def test_certifying_sparse_codes_needs_memory_for_blocks_not_for_all_of_them():
    n, k, d, slots = 4096, 65_536, 16, 4
    shape = lambda *size, dtype=jnp.float32: jax.ShapeDtypeStruct(size, dtype)  # noqa: E731
    D = jd.Dictionary(shape(k, d), shape(d))
    S = jd.SparseCodes(shape(n, slots, dtype=jnp.int32), shape(n, slots))
    program = jax.jit(lambda lam, D, S, X: jd.certify(jd.Problem(lam=lam), D, S, X).stationarity)
    used = program.lower(shape(), D, S, shape(n, d)).compile().memory_analysis().temp_size_in_bytes
    one_block, atoms = 4 * 2**22, 4 * k * d
    assert used < 12 * (one_block + atoms), f"{used / 2**20:.0f} MiB"


def test_the_directional_derivative_of_a_certificate_scales_with_the_problem():
    D, Z, X = point()
    told = jd.certify(jd.Problem(lam=0.2), D, Z, X)
    larger = jd.certify(jd.Problem(lam=0.6), D._replace(offset=3 * D.offset), 3 * Z, 3 * X)
    ratio = float(larger.stationarity.worst) / float(told.stationarity.worst)
    np.testing.assert_allclose(ratio, 1, rtol=1e-9)
    slopes = [float(c.directional_derivative) for c in (told, larger)]
    np.testing.assert_allclose(slopes[1] / slopes[0], 9, rtol=1e-9)  # F's units
