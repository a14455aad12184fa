"""One contract over the public functions: jit, vmap, no recompilation, float32 and float64, 1 and 8 devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdict as jd

PROBLEM = jd.Problem(lam=0.3)


def point(dtype=jnp.float64, n=24, d=4, k=6):
    keys = jax.random.split(jax.random.key(0), 3)
    X = jax.random.normal(keys[0], (n, d), dtype)
    D = jax.random.normal(keys[1], (k, d), dtype)
    D = D / jnp.linalg.norm(D, axis=1, keepdims=True)
    dictionary = jd.Dictionary(D, 0.1 * jnp.ones(d, dtype))
    Z = jnp.maximum(jax.random.normal(keys[2], (n, k), dtype), 0)
    return dictionary, Z, X


# name -> (dictionary, codes, X) -> arrays; each is a whole public function.
FUNCTIONS = {
    "objective": lambda D, Z, X: jd.objective(PROBLEM, D, Z, X),
    "residual": lambda D, Z, X: jd.residual(D, Z, X),
    "correlations": lambda D, Z, X: jd.correlations(PROBLEM, D, Z, X),
    "canonical": lambda D, Z, X: jd.canonical(D, Z),
    "lam_max": lambda D, Z, X: (jd.lam_max(X), jd.lam_max(X, D)),
    "encode": lambda D, Z, X: jd.encode(PROBLEM, D, X, tol=1e-4),
    "encode_sparse": lambda D, Z, X: jd.encode(PROBLEM, D, X, tol=1e-4, sparse=True),
    "encode_gradient": lambda D, Z, X: jd.encode(PROBLEM, D, X, tol=1e-4, method="gradient"),
    "steepest": lambda D, Z, X: jd.steepest_feasible_direction(PROBLEM, D, Z, X),
    "derivative": lambda D, Z, X: jd.directional_derivative(
        PROBLEM, D, Z, X, jd.steepest_feasible_direction(PROBLEM, D, Z, X)
    ),
    "certify": lambda D, Z, X: jd.certify(PROBLEM, D, Z, X),
    "optimality_map": lambda D, Z, X: jd.optimality_map(PROBLEM, D, Z, X),
    "optimal_value": lambda D, Z, X: jd.optimal_value(PROBLEM, D, X),
    "pair_costs": lambda D, Z, X: jd.conditions.pair_costs(PROBLEM, D, Z, X, 0, 1),
    "wide_bound": lambda D, Z, X: jd.wide.bound(X, 0.3),
    "fit": lambda D, Z, X: jd.fit(PROBLEM, X, start=D, tol=1e-3, max_steps=5, solver=jd.solvers.Alternating()),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_jit_vmap_and_one_trace(name):
    args = point()
    plain = FUNCTIONS[name](*args)
    chex.clear_trace_counter()  # it knows functions by their hash, and other tests make many
    traced = jax.jit(chex.assert_max_traces(FUNCTIONS[name], n=1))
    for _ in range(2):
        compare(traced(*args), plain, name)
    pair = jax.tree.map(lambda leaf: jnp.stack([leaf, 1.1 * leaf]), args)
    first = jax.tree.map(lambda leaf: leaf[0], jax.jit(jax.vmap(FUNCTIONS[name]))(*pair))
    compare(first, plain, name)


def compare(a, b, name):
    a, b = jax.tree.leaves(a), jax.tree.leaves(b)
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        # The same arithmetic in another order of sums; slot order and step counts of batched loops may differ.
        if jnp.issubdtype(x.dtype, jnp.floating) and x.shape == y.shape and name != "encode_sparse":
            np.testing.assert_allclose(x, y, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float32_in_float32_out(name):
    for leaf in jax.tree.leaves(FUNCTIONS[name](*point(jnp.float32))):
        assert leaf.dtype != jnp.float64


def test_second_calls_do_not_compile():
    D, Z, X = point()
    for function in (FUNCTIONS["encode"], FUNCTIONS["certify"], FUNCTIONS["fit"]):
        function(D, Z, X)
        with jax.log_compiles(), jax.check_tracer_leaks(False):
            before = compiled()
            function(D, Z, X * 1.01)
            assert compiled() == before


def compiled() -> int:
    """How many programs the package's own jitted entry points hold."""
    from jaxdict import fitting
    from jaxdict.certificates import certificate
    from jaxdict.encoding import exact

    return sum(f._cache_size() for f in (exact._encode, certificate._certify, fitting._solve, fitting._conclude))


def test_sparse_codes_are_accepted_wherever_dense_ones_are():
    D, Z, X = point()
    S = jd.sparse_codes(Z)
    for name in ("objective", "residual", "correlations", "steepest", "derivative", "certify"):
        compare(FUNCTIONS[name](D, S, X), FUNCTIONS[name](D, Z, X), name)
    compare(jd.dense_codes(jd.canonical(D, S)[1], 6), jd.canonical(D, Z)[1], "canonical")


EIGHT = """
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import jaxdict as jd
assert jax.device_count() == 8
X = jax.random.normal(jax.random.key(0), (64, 5))
D = jax.random.normal(jax.random.key(1), (8, 5))
D = jd.Dictionary(D / jnp.linalg.norm(D, axis=1, keepdims=True), jnp.zeros(5))
problem = jd.Problem(lam=0.3)
rows = NamedSharding(Mesh(np.array(jax.devices()), ("samples",)), P("samples", None))
results = []
for data in (X, jax.device_put(X, rows)):
    done = jd.encode(problem, D, data, tol=1e-12)
    told = jd.certify(problem, D, done.codes, data)
    results.append((np.asarray(done.codes), float(told.objective), float(told.stationarity.worst), float(told.wide_bound)))
for one, eight in zip(*results):
    np.testing.assert_allclose(one, eight, rtol=1e-9, atol=1e-12)
"""


def test_encode_and_certify_on_eight_devices(on_eight_devices):
    on_eight_devices(EIGHT)
