"""One device and eight simulated ones give the same numbers, by the kernels and by plain JAX, and what is large stays where it is."""

import json

import pytest

SAME = """
import sys
import jax, jax.numpy as jnp, numpy as np, jaxdict as jd
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxdict.encoding import engines
jax.config.update("jax_enable_x64", True)
assert jax.device_count() == 8
engine, kind, *parts = sys.argv[1:]
if engine == "plain":
    engines.kernels = lambda: None
draw = np.random.default_rng(0)
X, D = draw.normal(size=(80, 12)) + 0.2, draw.normal(size=(9, 12))
D = jd.Dictionary(jnp.asarray(D / np.linalg.norm(D, axis=1, keepdims=True)), 0.1 * jnp.ones(12))
problem = jd.Problem(lam=0.6, weights=draw.uniform(0.5, 1.5, 80), metric=draw.uniform(0.5, 1.5, 12))
codes = jd.encode(problem, D, X, tol=1e-12).codes
listed = jd.sparse_codes(codes)
mesh = jax.make_mesh((8,), ("s",), axis_types=(AxisType[kind],))
spread = lambda leaf: jax.device_put(leaf, NamedSharding(mesh, P("s", *[None] * (leaf.ndim - 1))))
fitted = lambda solution: (solution.dictionary, solution.codes, solution.objective)
calls = {
    "encode": lambda X, codes, listed: [
        jd.encode(problem, D, X, tol=1e-12, slots=9, sparse=sparse).codes for sparse in (False, True)
    ],
    "encode under jit": lambda X, codes, listed: jax.jit(
        lambda X: jd.encode(problem, D, X, tol=1e-12, sparse=True, slots=9).codes
    )(X),
    "encode under vmap": lambda X, codes, listed: jax.vmap(
        lambda lam: jd.encode(jd.Problem(lam=lam), D, X, tol=1e-12, slots=9, method="working_set").codes
    )(jnp.array([0.5, 0.6])),
    "certify": lambda X, codes, listed: [jd.certify(problem, D, Z, X) for Z in (codes, listed)],
    "wide.bound": lambda X, codes, listed: jd.wide.bound(X, 0.6),
    "pairs": lambda X, codes, listed: [jd.conditions.pairs(D, Z, quantile=q) for Z in (codes, listed) for q in (0.0, 0.1)],
    "fit": lambda X, codes, listed: fitted(jd.fit(problem, X, 5, key=jax.random.key(0), tol=1e-9)),
    "fit under jit": lambda X, codes, listed: jax.jit(
        lambda X: fitted(jd.fit(problem, X, start=jd.Dictionary(D.atoms[:5]), tol=1e-9, max_steps=100))
    )(X),
}

def densified(tree):
    one = lambda leaf: jd.dense_codes(leaf, 9) if isinstance(leaf, jd.SparseCodes) else leaf
    return jax.tree.map(lambda leaf: np.asarray(one(jax.device_get(leaf))), tree, is_leaf=lambda leaf: isinstance(leaf, jd.SparseCodes))

def close(path, one, many):
    path = jax.tree_util.keystr(path)
    if "steps" not in path:
        # The search for a new atom ends where its gain is level: the atom is known to the root of that.
        accuracy = 1e-6 if path.endswith("birth.atom") else 1e-9
        np.testing.assert_allclose(one, many, rtol=accuracy, atol=accuracy, err_msg=path)

for name in parts:
    call = calls[name]
    one, many = call(jnp.asarray(X), codes, listed), call(*jax.tree.map(spread, (jnp.asarray(X), codes, listed)))
    jax.tree_util.tree_map_with_path(close, densified(one), densified(many))
    print(name, flush=True)
"""
CASES = (
    ("plain", "Auto", "encode", "encode under jit", "encode under vmap", "certify", "wide.bound", "pairs"),
    ("plain", "Explicit", "encode", "encode under vmap"),
    ("plain", "Auto", "fit", "fit under jit"),
    ("kernels", "Explicit", "encode", "pairs"),
    ("kernels", "Auto", "fit"),
)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_one_device_and_eight_give_the_same(case, on_eight_devices):
    assert on_eight_devices(SAME, *case).split("\n")[:-1] == list(case[2:])


# The rounds of a traced fit: what its devices tell one another, by kind: how often, and the largest array.
TOLD = """
import json, sys
import jax, jax.numpy as jnp, numpy as np, jaxdict as jd
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxdict.encoding import engines
from jaxdict.solvers.rounds import traced_rounds
from jaxdict.solvers.task import task_of
sys.path.insert(0, "reference")
from scripts import FOLDER, load
engines.kernels = lambda: None
n, k, d = 800, 20, 12
mesh = jax.make_mesh((8,), ("s",), axis_types=(jax.sharding.AxisType.Auto,))
form = lambda *shape, on=P(): jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, on))

def rounds(lam, X, atoms):
    task = task_of(jd.Problem(lam=lam), X, k, None, jd.Dictionary(atoms), 1e-5, None)
    return traced_rounds(*task, max_steps=20, second_order=False, callback=None)

text = jax.jit(rounds).lower(form(), form(n, d, on=P("s")), form(k, d)).compile().as_text()
print(json.dumps(load(FOLDER / "compiled.py").exchanged(text)))
"""


@pytest.mark.slow
def test_the_rounds_of_a_fit_exchange_no_more_than_their_sums(on_eight_devices):
    told = json.loads(on_eight_devices(TOLD))
    assert set(told) <= {"all-reduce", "all-gather"}, told
    assert told["all-reduce"][1] <= 20 * 20  # (atoms, atoms); the largest of all others is (atoms, d)
    assert told.get("all-gather", (0, 0))[1] <= 800  # a number a sample, to rank them where an atom is born
