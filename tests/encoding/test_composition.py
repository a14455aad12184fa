"""`encode` inside other people's programs: traced and closed over, strict configurations, kinds of numbers, meshes, forks."""

import multiprocessing
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import compilations

import jaxdict as jd
from jaxdict.encoding import engines
from jaxdict.encoding.exact import _encode
from jaxdict.encoding.numba_engine.calls import kernels

METHODS = ("gradient", "working_set", *(["numba"] if kernels() is not None else []))
METHODS_MOST_SLOW = [pytest.param(name, marks=() if name == METHODS[-1] else pytest.mark.slow) for name in METHODS]
CONFIG = {"jax_numpy_dtype_promotion": "strict", "jax_numpy_rank_promotion": "raise", "jax_debug_nans": True}


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    D = rng.normal(size=(5, 4))
    D = jd.Dictionary(jnp.asarray(D / np.linalg.norm(D, axis=1, keepdims=True)), jnp.zeros(4))
    return D, jnp.asarray(rng.normal(size=(6, 4))), jnp.asarray(rng.uniform(0.5, 2, 4)), jnp.ones(6)


def codes_by(case, method, sparse=False, tol=1e-9):
    """lam -> dense codes; all else closed over."""
    D, X, metric, weights = case

    def codes(lam):
        problem = jd.Problem(lam=lam, metric=metric, weights=weights)
        return jd.dense_codes(jd.encode(problem, D, X, method=method, sparse=sparse, tol=tol, slots=5).codes, 5)

    return codes


@pytest.mark.parametrize("method", METHODS_MOST_SLOW)
def test_every_transform_with_the_data_closed_over(case, method):
    codes, lam = codes_by(case, method), jnp.asarray(0.3)
    expected, lams = np.asarray(codes_by(case, "working_set")(0.3)), jnp.stack([lam, 2 * lam])
    close = lambda Z: np.testing.assert_allclose(Z, expected, atol=1e-4)  # noqa: E731
    close(jax.jit(codes)(lam))
    close(jax.lax.scan(lambda carry, l: (carry, codes(l)), 0, lams)[1][0])
    close(jax.lax.map(codes, lams)[0])
    close(jax.jit(jax.vmap(codes))(lams)[0])
    loss = lambda l: jnp.sum(codes(l) ** 2)  # noqa: E731
    slope = jax.grad(loss)(lam)
    for other in (jax.jit(jax.grad(loss)), jax.grad(jax.checkpoint(loss))):
        np.testing.assert_allclose(other(lam), slope, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(loss)))(lams)[0], slope, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(loss)(0.3), slope, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sparse", [False, True])
def test_strict_configurations(case, method, sparse):
    """Strict promotion, no rank promotion, NaNs debugged: codes from every kind of start, and their derivative."""
    D, X, metric, _ = case
    dense = codes_by(case, "working_set")(0.3)
    before = {name: getattr(jax.config, name) for name in CONFIG}
    try:
        for name, value in CONFIG.items():
            jax.config.update(name, value)
        for start in (None, dense, jd.sparse_codes(dense, 3)):
            problem = jd.Problem(lam=0.3, metric=metric, signed=True, gauge="penalised")
            done = jd.encode(problem, D, X, method=method, sparse=sparse, codes=start, slots=5)
            assert "solved" in done.message()
        slope = jax.jit(jax.grad(lambda lam: jnp.sum(codes_by(case, method, sparse)(lam))))(0.3)
        assert np.isfinite(slope)
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.mark.parametrize("method", METHODS)
def test_other_kinds_of_numbers_compile_nothing(case, method):
    D, X, _, _ = case
    start = jd.sparse_codes(codes_by(case, "working_set")(0.3), 3)
    run = lambda lam, tol: jd.encode(jd.Problem(lam=lam), D, X, method=method, sparse=True, codes=start, tol=tol)  # noqa: E731
    kinds = [
        (jnp.asarray(0.2), 1),
        (np.float64(0.2), np.float64(1e-6)),
        (0.2, jnp.asarray(1e-3)),
        (1, jnp.float32(1e-3)),
    ]
    run(0.1, 1e-6)
    programs = _encode._cache_size()
    for lam, tol in kinds:  # numbers of another dtype are converted, by programs of their own the first time
        run(lam, tol)
    assert _encode._cache_size() == programs
    others = [(1.1 * lam, 2 * tol) for lam, tol in kinds]
    with compilations() as compiled:
        for lam, tol in others:
            run(lam, tol)
    assert not compiled


def test_tol_is_a_number(case):
    D, X, _, _ = case
    with pytest.raises(ValueError, match="tol has shape"):
        jd.encode(jd.Problem(lam=0.3), D, X, tol=jnp.ones(2))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_forked_child_is_told(case):
    codes_by(case, "working_set")(0.3)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def child():
        try:
            engines.refuse_after_fork()
            theirs.send("went on")
        except RuntimeError as error:
            theirs.send(str(error))

    process = context.Process(target=child)
    process.start()
    assert ours.poll(30)
    assert "spawn" in ours.recv()
    process.join(30)


EIGHT = """
import sys
import jax, jax.numpy as jnp, numpy as np, jaxdict as jd
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
assert jax.device_count() == 8
rng = np.random.default_rng(0)
X, D = rng.normal(size=(16, 5)).astype("float32"), rng.normal(size=(7, 5)).astype("float32")
D, problem = jd.Dictionary(jnp.asarray(D / np.linalg.norm(D, axis=1, keepdims=True))), jd.Problem(lam=0.3, weights=np.ones(16))
expected = np.asarray(jd.encode(problem, D, X, method="working_set").codes)
dense = lambda codes: np.asarray(jd.dense_codes(jax.tree.map(np.asarray, codes), 7))
close = lambda codes: np.testing.assert_allclose(dense(codes), expected, atol=3e-3)
for kind in (AxisType.Explicit, AxisType.Auto):
    mesh = jax.make_mesh((8,), ("samples",), axis_types=(kind,))
    rows = NamedSharding(mesh, P("samples"))
    placed = jax.device_put(X, rows)
    for method in sys.argv[1:]:
        for sparse in (False, True):
            run = lambda X: jd.encode(problem, D, X, method=method, sparse=sparse, slots=7)
            done = run(placed)
            close(done.codes)
            for leaf in jax.tree.leaves((done.codes, done.gap)):
                assert leaf.sharding.is_equivalent_to(rows, leaf.ndim), (method, sparse, leaf.sharding)
            again = jd.encode(problem, D, placed, method=method, sparse=sparse, slots=7, codes=done.codes)
            close(again.codes)
        if kind == AxisType.Explicit:
            close(jax.jit(run)(placed).codes)
        within = lambda X: jd.encode(jd.Problem(lam=0.3), D, X, method=method).codes
        close(jax.jit(jax.shard_map(within, mesh=mesh, in_specs=P("samples"), out_specs=P("samples")))(placed))
"""


@pytest.mark.slow
def test_each_device_solves_its_own_samples(on_eight_devices):
    on_eight_devices(EIGHT, *METHODS, "auto")
