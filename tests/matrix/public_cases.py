"""One table: how each public function is called on tiny shapes. test_matrix.py fills every column of the matrix from it.

A case is named by the public function, then, after a colon, what is special. The parameters of `call` name its inputs (`inputs`);
a new public function joins by a row here, and one without a row fails the test.
"""

import ast
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import jaxdict as jd
from jaxdict import conditions, population, recovery, sae, synthetic, wide

SAMPLES, D_IN, ATOMS, FEATURES, RUNS = 16, 3, 4, 3, 2


@dataclass(frozen=True)
class Case:
    """One way to call a public function."""

    call: Callable
    holes: dict[str, str] = field(default_factory=dict)  # column -> why it cannot hold; a hole that passes is an error
    constant: dict[str, str] = field(
        default_factory=dict
    )  # output (an expression of its path) -> why it has derivative zero
    loose: str = "steps|rounds|history"  # outputs that may differ from column to column
    heavy: bool = False  # dear to compile: where tracing alone shows the point, it is only traced


def inputs(dtype=np.float64) -> dict:
    """Every input by name, as jax arrays; samples are what has 16 rows."""
    draw = np.random.default_rng(0)

    def normal(*shape):
        return draw.normal(size=shape)

    atoms = normal(ATOMS, D_IN)
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    codes = np.maximum(normal(SAMPLES, ATOMS), 0)
    wider = np.maximum(normal(SAMPLES, ATOMS + 1), 0)
    fast = dtype == np.float32
    values = {
        "lam": 0.3,
        "tol": 1e-5 if fast else 1e-9,
        "tau": 0.2,
        "alpha": 0.7,
        "scalar": 0.05,
        "D": jd.Dictionary(atoms, 0.1 * normal(D_IN)),
        "Z": codes,
        "X": normal(SAMPLES, D_IN) + 0.2,
        "w": draw.uniform(0.5, 1.5, SAMPLES),
        "m": draw.uniform(0.5, 1.5, D_IN),
        "u": normal(D_IN),
        "row": normal(ATOMS),
        "move": jd.Direction(normal(ATOMS, D_IN), np.abs(normal(SAMPLES, ATOMS)), normal(D_IN)),
        "cross": normal(ATOMS, D_IN),
        "squares": draw.uniform(0.5, 1.5, ATOMS),
        "lams": np.array([0.3, 0.4]),
        "x": draw.uniform(size=(SAMPLES, FEATURES)),
        "latents": wider,
        "map": normal(FEATURES, 2),
        "rows": normal(RUNS, ATOMS, D_IN),
        "losses": np.array([0.5, 0.2]),
        "square": normal(ATOMS, ATOMS),
        "sparsity": draw.uniform(0.3, 0.7, FEATURES),
        "tied": recovery.Autoencoder(normal(ATOMS, D_IN)),
        "sparsities": np.array([0.5, 0.9, 0.99]),
        "falling": np.array([0.3, 0.1, 0.01]),
        "model": sae.SAE(normal(D_IN, ATOMS), normal(ATOMS), atoms * 1.3, normal(D_IN)),
    }
    values = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), values)
    listed = jd.SparseCodes(*map(jnp.asarray, _slots(codes)))
    values["S"] = listed._replace(values=listed.values.astype(dtype))
    values |= {"i": jnp.asarray(1), "j": jnp.asarray(2), "labels": jnp.asarray(np.arange(SAMPLES) % 3)}
    values |= {"key": jax.random.key(0), "keys": jax.random.split(jax.random.key(1), RUNS)}
    return values


def _slots(codes):
    order = np.argsort(-codes, axis=1)[:, :ATOMS]
    return order, np.take_along_axis(codes, order, axis=1)


def problem(lam, **options):
    return jd.Problem(lam=lam, **options)


def full(lam, w, m):
    """A problem with everything that can be traced."""
    return jd.Problem(lam=lam, metric=m, weights=w)


TREES = synthetic.Forest(roots=1, branching=2, depth=2, exclusive=1.0, scale_by_parent=True)


def bench_model_of(key, means):
    made = synthetic.bench_model(key, FEATURES, 3, firing=synthetic.firing.Constant(0.5), forest=TREES)
    return eqx.tree_at(lambda model: model.means, made, means)


def planted_of(D, Z, X):
    """Planted data whose second and third features are children of the first."""
    return synthetic.Planted(X, Z, D, jnp.array([-1, 0, 0, -1]), jnp.full(ATOMS, -1), "")


PYTHON_LOOP = "a Python loop around jitted pieces, said in its docstring"
PYTHON_LOOP_HOLES = dict.fromkeys(("jit", "closed", "scan", "vmap", "derivative", "strict"), PYTHON_LOOP)
STATIC = "counts and names only: nothing to trace"
DEFAULT_PRECISION = {"float32": "drawn in jax's default precision, whatever the precision of the rates"}
PROMOTED = DEFAULT_PRECISION | {"strict": "rates in another precision than jax's default are promoted to it"}
BY_OPTAX = {
    "strict": "optax promotes in its schedules (a number and an int32) and in its assignment (float32 and float64)"
}
CONSTANT_PROOF = {r"gap|status|steps": "gap, status and steps have no derivative, says encode's docstring"}
NAN_MARKS = {"debug_nans": "NaN marks pairs of which the condition does not speak, says its docstring"}

ATOM_IS_FIXED = {r"birth\.atom": "the atom of a birth is a constant, says certify's docstring"}
STEP_IS_FIXED = {r"\.step": "the step is chosen by search and held, says its docstring"}
DRAWN = DEFAULT_PRECISION  # another precision draws other numbers
NOT_IMPLICIT = {"derivative": "derivatives of a fit are asked for by implicit=True, says its docstring"}
BOUND_IS_HELD = {r"offset|radius|rays": "only the value and its dual have derivatives, says its docstring"}
EQUAL_ROWS = {"derivative": "a distance of zero has no slope"}

CASES = {
    # jaxdict
    "objective": Case(lambda lam, w, m, D, Z, X: jd.objective(full(lam, w, m), D, Z, X)),
    "objective: sparse codes": Case(lambda lam, w, m, D, S, X: jd.objective(full(lam, w, m), D, S, X)),
    "objective: penalised": Case(lambda lam, D, Z, X: jd.objective(problem(lam, gauge="penalised"), D, Z, X)),
    "residual": Case(lambda D, Z, X: jd.residual(D, Z, X)),
    "residual: sparse codes": Case(lambda D, S, X: jd.residual(D, S, X)),
    "correlations": Case(lambda lam, w, m, D, Z, X: jd.correlations(full(lam, w, m), D, Z, X)),
    "canonical": Case(lambda D, Z: jd.canonical(D, Z)),
    "canonical: sparse codes": Case(lambda D, S: jd.canonical(D, S)),
    "dense_codes": Case(lambda S: jd.dense_codes(S, ATOMS)),
    "sparse_codes": Case(lambda Z: jd.sparse_codes(Z, ATOMS)),
    "lam_max": Case(lambda X, w, m: jd.lam_max(X, metric=m, weights=w)),
    "lam_max: dictionary": Case(lambda X, D: jd.lam_max(X, D)),
    "encode": Case(lambda lam, w, m, D, X, tol: jd.encode(full(lam, w, m), D, X, tol=tol), constant=CONSTANT_PROOF),
    "encode: plain JAX": Case(
        lambda lam, D, X, tol: jd.encode(problem(lam), D, X, tol=tol, method="working_set"), constant=CONSTANT_PROOF
    ),
    "encode: gradient": Case(
        lambda lam, D, X: jd.encode(problem(lam), D, X, tol=1e-5, method="gradient").codes,
        holes={"derivative": "codes to a tolerance of 1e-5, so are their differences; exact codes are tested above"},
    ),
    "encode: sparse": Case(
        lambda lam, D, X, tol: jd.encode(problem(lam), D, X, tol=tol, sparse=True, slots=ATOMS), constant=CONSTANT_PROOF
    ),
    "encode: warm start": Case(
        lambda lam, D, Z, X, tol: jd.encode(problem(lam), D, X, tol=tol, codes=Z), constant=CONSTANT_PROOF
    ),
    "refit_values": Case(lambda D, Z, X, m: jd.refit_values(D, Z, X, metric=m, slots=ATOMS)),
    "refit_values: plain JAX": Case(lambda D, Z, X: jd.refit_values(D, Z, X, slots=ATOMS, signed=True, method="jax")),
    "refit_values: sparse codes": Case(lambda D, S, X: jd.dense_codes(jd.refit_values(D, S, X, slots=ATOMS), ATOMS)),
    "values_gap": Case(lambda D, Z, X, m: jd.values_gap(D, Z, X, metric=m, slots=ATOMS)),
    "values_gap: sparse codes": Case(lambda D, S, X: jd.values_gap(D, S, X, slots=ATOMS)),
    "best_subset": Case(
        lambda D, X, m, tol: jd.best_subset(D, X, 2, metric=m, tol=tol), constant=CONSTANT_PROOF, heavy=True
    ),
    "best_subset: plain JAX": Case(
        lambda D, X, S: jd.best_subset(D, X, 2, start=jd.SparseCodes(S.indices[:, :2], S.values[:, :2]), method="jax"),
        constant=CONSTANT_PROOF,
        heavy=True,
    ),
    "best_subset: signed": Case(lambda D, X: jd.best_subset(D, X, 2, signed=True).codes, heavy=True),
    "steepest_feasible_direction": Case(
        lambda lam, w, m, D, Z, X: jd.steepest_feasible_direction(full(lam, w, m), D, Z, X)
    ),
    "directional_derivative": Case(lambda lam, D, Z, X, move: jd.directional_derivative(problem(lam), D, Z, X, move)),
    "optimality_map": Case(lambda lam, w, m, D, Z, X: jd.optimality_map(full(lam, w, m), D, Z, X)),
    "optimality_map: sparse codes": Case(lambda lam, D, S, X: jd.optimality_map(problem(lam), D, S, X)),
    "certify": Case(lambda lam, w, m, D, Z, X: jd.certify(full(lam, w, m), D, Z, X), constant=ATOM_IS_FIXED),
    "certify: sparse codes": Case(
        lambda lam, D, S, X: jd.certify(problem(lam), D, S, X), heavy=True, constant=ATOM_IS_FIXED
    ),
    "certify: curvature": Case(
        lambda lam, D, Z, X: jd.certify(problem(lam), D, Z, X, curvature=True),
        heavy=True,
        constant=ATOM_IS_FIXED | {r"curvature": "the curvature is a constant, says certify's docstring"},
    ),
    "optimal_value": Case(lambda lam, w, m, D, X, tol: jd.optimal_value(full(lam, w, m), D, X, tol=tol)),
    "response": Case(
        lambda lam, D, Z, X: jd.response(problem(lam), D, Z, X, lam=1.0),
        holes=dict.fromkeys(
            ("debug_nans", "derivative"), "this point is no strict minimum, which the response says by NaN"
        ),
        heavy=True,
        loose=r"\.residual",  # what conjugate gradients leave where there is no solution
    ),
    "fit": Case(
        lambda lam, w, m, D, X: jd.fit(
            full(lam, w, m), X, start=D, tol=1e-3, max_steps=4, solver=jd.solvers.Alternating(), callback=lambda _: None
        ),
        holes=NOT_IMPLICIT,
        heavy=True,
    ),
    "fit: from a key": Case(
        lambda lam, X, key: jd.fit(
            problem(lam), X, ATOMS, key=key, tol=1e-3, max_steps=4, solver=jd.solvers.Alternating()
        ),
        holes=NOT_IMPLICIT | DRAWN,
        heavy=True,
    ),
    "fit: default solver": Case(
        lambda lam, D, X: jd.fit(problem(lam), X, start=D, tol=1e-3, max_steps=4), holes=NOT_IMPLICIT, heavy=True
    ),
    "fit_batch": Case(
        lambda lams, X, keys: jd.fit_batch(
            problem(lams), X, ATOMS, keys=keys, tol=1e-3, max_steps=4, solver=jd.solvers.Alternating()
        ),
        holes=NOT_IMPLICIT | DRAWN,
        heavy=True,
    ),
    # jaxdict.conditions
    "conditions.hull": Case(
        lambda D, Z, i, w: conditions.hull(D, Z, i, weights=w),
        holes={"derivative": "inside the hull the distance is zero and rounding points its slope anywhere"},
        heavy=True,
    ),
    "conditions.hull_direction": Case(
        lambda D, Z, i: conditions.hull_direction(D, Z, i, conditions.hull(D, Z, i, offset=False)), heavy=True
    ),
    "conditions.row_direction": Case(lambda D, Z, i, row, scalar: conditions.row_direction(D, Z, i, row, scalar)),
    "conditions.pairs": Case(lambda D, Z, w: conditions.pairs(D, Z, weights=w), holes=NAN_MARKS),
    "conditions.pairs: sparse codes": Case(lambda D, S: conditions.pairs(D, S), holes=NAN_MARKS),
    "conditions.pair_statistics": Case(lambda Z, w: conditions.pair_statistics(Z, weights=w)),
    "conditions.merge_pair_statistics": Case(
        lambda Z: conditions.merge_pair_statistics(conditions.pair_statistics(Z), conditions.pair_statistics(Z))
    ),
    "conditions.pairs_from_statistics": Case(
        lambda D, Z: conditions.pairs_from_statistics(D, conditions.pair_statistics(Z), offset=False), holes=NAN_MARKS
    ),
    "conditions.pair_costs": Case(
        lambda lam, w, m, D, Z, X, i, j: conditions.pair_costs(full(lam, w, m), D, Z, X, i, j), constant=STEP_IS_FIXED
    ),
    "conditions.direction_cost": Case(
        lambda lam, D, Z, X, move: conditions.direction_cost(problem(lam), D, Z, X, move), constant=STEP_IS_FIXED
    ),
    "conditions.turning_gains": Case(lambda D, cross, squares: conditions.turning_gains(D.atoms, cross, squares)),
    "conditions.unit_moments": Case(lambda lam, w, m, D, Z, X: conditions.unit_moments(full(lam, w, m), D, Z, X)),
    "conditions.unit_moments: sparse codes": Case(lambda lam, D, S, X: conditions.unit_moments(problem(lam), D, S, X)),
    "conditions.barycentre": Case(lambda lam, w, m, D, Z, X: conditions.barycentre(full(lam, w, m), D, Z, X)),
    "conditions.barycentre: sparse codes": Case(lambda lam, D, S, X: conditions.barycentre(problem(lam), D, S, X)),
    "conditions.barycentre_from_sums": Case(
        lambda lam, D, Z, X: conditions.barycentre_from_sums(
            problem(lam), D, conditions.unit_moments(problem(lam), D, Z, X)
        )
    ),
    "conditions.barycentre_weights": Case(
        lambda lam, w, m, D, Z, X, i: conditions.barycentre_weights(full(lam, w, m), D, Z, X, i)
    ),
    "conditions.residual": Case(lambda lam, w, m, D, Z, X: conditions.residual(full(lam, w, m), D, Z, X)),
    "conditions.residual_from_sums": Case(
        lambda lam, D, Z, X: conditions.residual_from_sums(
            problem(lam), D, conditions.unit_moments(problem(lam), D, Z, X)
        )
    ),
    "conditions.residual_samples": Case(
        lambda lam, w, m, D, Z, X, i, u: conditions.residual_samples(full(lam, w, m), D, Z, X, i, u, top=3)
    ),
    "conditions.mop_up": Case(lambda lam, w, m, D, Z, X, i, u: conditions.mop_up(full(lam, w, m), D, Z, X, i, u)),
    "conditions.mop_up_direction": Case(
        lambda lam, D, Z, X, i, u: conditions.mop_up_direction(
            problem(lam), D, Z, i, conditions.mop_up(problem(lam), D, Z, X, i, u)
        )
    ),
    "conditions.hierarchy": Case(
        lambda D, Z, lam, w: conditions.hierarchy(Z, dictionary=D, lam=lam, weights=w), holes=NAN_MARKS
    ),
    "conditions.absorption_direction": Case(lambda D, Z, i, j: conditions.absorption_direction(D, Z, i, j)),
    "conditions.flat_pairs": Case(lambda D, Z, w, i, j: conditions.flat_pairs(D, Z, i, j, weights=w)),
    "conditions.flat_pairs: sparse codes": Case(lambda D, S, i, j: conditions.flat_pairs(D, S, i, j)),
    "conditions.prefix_pairs": Case(lambda D, Z, X, w, i, j: conditions.prefix_pairs(D, Z, X, (2, 4), i, j, weights=w)),
    "conditions.prefix_pairs: weighted prefixes": Case(
        lambda D, S, X, i, j: conditions.prefix_pairs(D, S, X, (2, 4), i, j, prefix_weights=(0.5, 2.0)), heavy=True
    ),
    "conditions.absorption": Case(lambda Z, w, i, j, labels: conditions.absorption(Z, labels != 0, i, j, weights=w)),
    "conditions.absorption: sparse codes": Case(
        lambda S, w, i, j, labels: conditions.absorption(S, labels != 0, i, j, weights=w, n_atoms=ATOMS)
    ),
    "conditions.direction_present": Case(
        lambda D, Z, X, w, i, j: conditions.direction_present(D, Z, X, i, j, weights=w)
    ),
    "conditions.penalty_cosines": Case(
        lambda D, Z, w, i, j: conditions.penalty_cosines(D, Z, jnp.sqrt, i, j, weights=w), holes=NAN_MARKS
    ),
    "conditions.predicted_cosine": Case(
        lambda Z, lam, w: conditions.predicted_cosine(Z, lam, weights=w), holes=NAN_MARKS
    ),
    "conditions.exclusive": Case(lambda Z, w: conditions.exclusive(Z, weights=w)),
    "conditions.exclusive: sparse codes": Case(lambda S: conditions.exclusive(S, n_atoms=ATOMS)),
    "conditions.antipodal": Case(lambda D, Z, w: conditions.antipodal(D, Z, weights=w)),
    # jaxdict.wide
    "wide.bound": Case(lambda X, lam, w, m: wide.bound(X, lam, metric=m, weights=w), constant=BOUND_IS_HELD),
    "wide.bound: no offset": Case(lambda X, lam: wide.bound(X, lam, offset=False), constant=BOUND_IS_HELD),
    "wide.loose_bound": Case(lambda X, lam, tau: wide.loose_bound(X, lam, tau)),
    "wide.loose_bound: metric, offset": Case(
        lambda X, lam, tau, m: wide.loose_bound(X, lam, tau, metric=m, offset=True, steps=5),
        holes={"derivative": "the offset of each step is a constant, says its docstring"},
        heavy=True,
    ),
    "wide.polar_height": Case(lambda Z, tau: wide.polar_height(Z, tau)),
    "wide.rank_one_gauge": Case(lambda row, falling, tau: wide.rank_one_gauge(row, falling, tau)),
    "wide.rank_one_solution": Case(lambda row, lam, tau: wide.rank_one_solution(row, lam, tau)),
    "wide.solve_size_penalised": Case(
        lambda X, lam, tau: wide.solve_size_penalised(X, lam, tau, max_rounds=1),
        holes=PYTHON_LOOP_HOLES | {"Explicit": PYTHON_LOOP},
    ),
    # jaxdict.recovery
    "recovery.agreement": Case(lambda rows, losses: recovery.agreement(rows, losses), holes=BY_OPTAX | EQUAL_ROWS),
    "recovery.alignment": Case(lambda D, cross: recovery.alignment(cross, D.atoms), holes=BY_OPTAX),
    "recovery.assignment": Case(lambda square: recovery.assignment(square), holes=BY_OPTAX),
    "recovery.average_active": Case(lambda latents, w: recovery.average_active(latents, w)),
    "recovery.bench_absorption": Case(
        lambda D, Z, X: recovery.bench_absorption(D, planted_of(D, Z, X), latents=Z), holes=NAN_MARKS
    ),
    "recovery.bench_metrics": Case(
        lambda D, cross, Z, X: recovery.bench_metrics(
            D._replace(atoms=D.atoms + 0.3 * cross), planted_of(D, Z, X), latents=Z
        )
    ),
    "recovery.bench_metrics: an SAE": Case(
        lambda model, D, Z, X: recovery.bench_metrics(model, planted_of(D, Z, X)), heavy=True
    ),
    "recovery.bench_metrics_from_sums": Case(
        lambda D, Z, X: recovery.bench_metrics_from_sums(D, D, recovery.bench_sums(D, planted_of(D, Z, X), latents=Z)),
        heavy=True,
    ),
    "recovery.bench_sums": Case(lambda D, Z, X: recovery.bench_sums(D, planted_of(D, Z, X), latents=Z)),
    "recovery.bench_sums: sparse codes": Case(
        lambda D, Z, S, X: recovery.bench_sums(D, planted_of(D, Z, X), latents=S)
    ),
    "recovery.block_map": Case(lambda map, cross: recovery.block_map(map, cross)),
    "recovery.closed_form": Case(lambda map: recovery.closed_form(map, ATOMS)),
    "recovery.digon_map": Case(lambda: recovery.digon_map(2)),
    "recovery.digon_output": Case(lambda map: recovery.digon_output(map)),
    "recovery.digon_rates": Case(lambda sparsity: recovery.digon_rates(sparsity[:2]), holes=DEFAULT_PRECISION),
    "recovery.dimension_variance": Case(lambda X, w: recovery.dimension_variance(X, w)),
    "recovery.dimensions_per_feature": Case(lambda map: recovery.dimensions_per_feature(map)),
    "recovery.errors_by_dimension": Case(lambda tied, X, w: recovery.errors_by_dimension(tied, X, weights=w)),
    "recovery.ground_truth_loss": Case(
        lambda x, latents, w: recovery.ground_truth_loss(x, latents, weights=w, scale=True)
    ),
    "recovery.identity_map": Case(lambda: recovery.identity_map(3)),
    "recovery.judge": Case(
        lambda key, map, x, w: recovery.judge(key, map, x, weights=w, restarts=2, steps=2),
        heavy=True,
        holes=BY_OPTAX | EQUAL_ROWS | DRAWN,
    ),
    "recovery.label_numbers": Case(
        lambda labels: recovery.label_numbers(labels),
        holes=dict.fromkeys(("jit", "closed", "scan", "vmap", "strict"), "labels of any kind: for the host only"),
    ),
    "recovery.learned_map": Case(
        lambda key, sparsity: recovery.learned_map(key, sparsity, 2, n_samples=8, steps=2),
        heavy=True,
        holes=DEFAULT_PRECISION | BY_OPTAX,
    ),
    "recovery.learned_metric": Case(lambda m, tau: recovery.learned_metric(m, tau)),
    "recovery.loss_gaps": Case(lambda tied, x, X, w, m: recovery.loss_gaps(tied, x, X, weights=w, metric=m)),
    "recovery.metric_from": Case(lambda X, alpha, w: recovery.metric_from(X, alpha, weights=w)),
    "recovery.penalty_term": Case(lambda tied, X, w: recovery.penalty_term(tied, X, weights=w)),
    "recovery.polygon_map": Case(lambda: recovery.polygon_map(5)),
    "recovery.random_map": Case(
        lambda key, alpha: recovery.random_map(key, 4, 2, largest_cosine=alpha + 0.2),
        holes=DEFAULT_PRECISION,
        constant={"": "found by bisection, says its docstring"},
    ),
    "recovery.reconstruction_loss": Case(
        lambda tied, X, w, m: recovery.reconstruction_loss(tied, X, weights=w, metric=m)
    ),
    "recovery.recover": Case(
        lambda key, map, sparsity, alpha: recovery.recover(key, map, sparsity, alpha=alpha, n_samples=8, steps=2),
        heavy=True,
        holes=DEFAULT_PRECISION | BY_OPTAX,
    ),
    "recovery.recovery_rate": Case(lambda sparsities, falling: recovery.recovery_rate(sparsities, falling)),
    "recovery.reweight": Case(lambda m, alpha: recovery.reweight(m, alpha)),
    "recovery.row_distance": Case(lambda D, cross: recovery.row_distance(cross, D.atoms), holes=BY_OPTAX),
    "recovery.semantic_consistency": Case(
        lambda X, labels: recovery.semantic_consistency(X, labels, top=4, n_labels=3)
    ),
    "recovery.simulated_rates": Case(lambda x, latents, w: recovery.simulated_rates(x[:, :2], latents[:, :2], w)),
    "recovery.single_feature_error": Case(lambda map: recovery.single_feature_error(map)),
    "recovery.sparse_features": Case(
        lambda key, sparsity: recovery.sparse_features(key, 8, sparsity), holes=DEFAULT_PRECISION
    ),
    "recovery.stratified_features": Case(
        lambda key, sparsity: recovery.stratified_features(key, 1, sparsity), holes=DEFAULT_PRECISION
    ),
    "recovery.superpose": Case(lambda x, map: recovery.superpose(x, map)),
    "recovery.sweep_recovery": Case(
        lambda key, map, sparsities, alpha: recovery.sweep_recovery(
            key, map, sparsities, restarts=2, alphas=(0.0, 1.0), n_samples=8, steps=2
        ),
        heavy=True,
        holes=DEFAULT_PRECISION
        | BY_OPTAX
        | EQUAL_ROWS
        | {"debug_nans": "of eight samples a proxy is zero everywhere, and relative to no mean"},
    ),
    "recovery.tetrahedron_map": Case(lambda: recovery.tetrahedron_map()),
    "recovery.train": Case(
        lambda key, X, w, m: recovery.train(key, X, ATOMS, weights=w, metric=m, steps=2),
        heavy=True,
        holes=BY_OPTAX | DRAWN,
    ),
    "recovery.train_batch": Case(
        lambda keys, X, w: recovery.train_batch(keys, X, ATOMS, weights=w, steps=2),
        heavy=True,
        holes=BY_OPTAX | DRAWN,
    ),
    # jaxdict.synthetic
    "synthetic.bench_model": Case(
        lambda key: synthetic.bench_model(
            key, 7, 3, forest=TREES, correlation=synthetic.LowRank(2), orthogonal=synthetic.Orthogonal(2)
        ),
        heavy=True,
    ),
    "synthetic.bench_sample": Case(
        lambda key, sparsity: synthetic.bench_sample(key, bench_model_of(key, sparsity), 8),
        holes=DRAWN,
        heavy=True,
    ),
    "synthetic.coherence": Case(lambda D: synthetic.coherence(D)),
    "synthetic.correlated": Case(lambda key, alpha: synthetic.correlated(key, 8, correlation=alpha), holes=PROMOTED),
    "synthetic.dense_direction": Case(
        lambda key, alpha: synthetic.dense_direction(key, 8, spread=alpha), holes=PROMOTED
    ),
    "synthetic.dog_labrador": Case(lambda key, lam: synthetic.dog_labrador(key, 8, rho=lam), holes=DEFAULT_PRECISION),
    "synthetic.exclusive": Case(
        lambda key, alpha: synthetic.exclusive(key, 8, frequency=alpha), holes=DEFAULT_PRECISION
    ),
    "synthetic.hierarchy": Case(lambda key, lam: synthetic.hierarchy(key, 8, frequency=lam, noise=lam), holes=PROMOTED),
    "synthetic.illustrative": Case(lambda key, lam: synthetic.illustrative(key, 8, cosine=lam), holes=PROMOTED),
    "synthetic.independent": Case(
        lambda key, lam, u: synthetic.independent(key, 8, 3, frequency=lam, offset=u), holes=DEFAULT_PRECISION
    ),
    "synthetic.one_dimensional": Case(lambda key, lam: synthetic.one_dimensional(key, 8, noise=lam), holes=PROMOTED),
    "synthetic.orthogonalise": Case(lambda D: synthetic.orthogonalise(D.atoms, 3)),
    "synthetic.random_atoms": Case(lambda key: synthetic.random_atoms(key, 4, 3)),
    "synthetic.rays": Case(lambda key, lam: synthetic.rays(key, 8, scale=lam), holes=PROMOTED),
    "synthetic.spread_atoms": Case(lambda D: synthetic.spread_atoms(D.atoms, 5)),
    "synthetic.superposition": Case(
        lambda key, lam: synthetic.superposition(key, 8, 4, 3, frequency=lam, spread_steps=5), holes=DEFAULT_PRECISION
    ),
    "synthetic.tree": Case(lambda: synthetic.tree(1, 2, 1)),
    # jaxdict.population
    "population.compare": Case(
        lambda lam, w, D, X: population.compare(problem(lam, weights=w), D, D._replace(offset=2 * D.offset), X),
        heavy=True,
    ),
    "population.refute": Case(
        lambda lam, D, X, key: population.refute(problem(lam), D, X, key=key),
        holes=dict.fromkeys(
            ("jit", "closed", "scan", "vmap", "derivative", "strict"), "halves are cut by value, says its docstring"
        ),
        heavy=True,
    ),
    "population.population_sums": Case(lambda lam, w, m, D, Z, X: population.population_sums(full(lam, w, m), D, X, Z)),
    "population.defects": Case(lambda lam, D, X: population.defects(problem(lam), D, X), heavy=True),
    "population.defects_from_sums": Case(
        lambda lam, D, Z, X: population.defects_from_sums(
            problem(lam), D, population.population_sums(problem(lam), D, X, Z)
        )
    ),
    # jaxdict.sae: the numeric parts
    "sae.check_activations": Case(lambda model, X: sae.check_activations(model, X)),
    "sae.fitted_sae": Case(
        lambda D, lam, X, Z: sae.fitted_sae(D, lam, X, Z, steps=3),
        holes={"derivative": "a loop of steps that are counted as it runs has forward derivatives only"},
    ),
    "sae.tied_sae": Case(lambda D, lam: sae.tied_sae(D, lam)),
    "sae.train": Case(
        lambda key, X, lam: sae.train(X, ATOMS, key=key, lam=lam, steps=3, batch_size=8),
        holes=DRAWN | {"derivative": "a loop of steps that are counted as it runs has forward derivatives only"},
        heavy=True,
    ),
    "sae.train: batchtopk": Case(
        lambda key, X: sae.train(X, ATOMS, key=key, architecture="batchtopk", k=1.5, steps=3, batch_size=8),
        holes=DRAWN | {"derivative": "a loop of steps that are counted as it runs has forward derivatives only"},
        heavy=True,
    ),
    "sae.train: jumprelu": Case(
        lambda key, X, lam: sae.train(X, ATOMS, key=key, architecture="jumprelu", lam=lam, steps=3, batch_size=8),
        holes=DRAWN | {"derivative": "slopes in thresholds are estimates, says its docstring"},
        heavy=True,
    ),
    "sae.train_batch": Case(
        lambda keys, X, lam: sae.train_batch(X, ATOMS, keys=keys, lam=lam, steps=3, batch_size=8),
        holes=DRAWN | {"derivative": "a loop of steps that are counted as it runs has forward derivatives only"},
        heavy=True,
    ),
    "sae.training_loss": Case(lambda model, X, lam: sae.training_loss(model, X, lam)),
    "sae.unroll": Case(lambda lam, m, D, X: sae.unroll(jd.Problem(lam=lam, metric=m), D, 3).encode(X)),
    "sae.unroll: from an SAE": Case(
        lambda lam, D, model, X: sae.unroll(
            problem(lam, gauge="penalised"), D, 2, start=model, accelerated=False
        ).encode(X)
    ),
    "sae.unroll_moves": Case(lambda lam, m, D, X: sae.unroll_moves(jd.Problem(lam=lam, metric=m), D, 3).encode(X)),
    "sae.unroll_moves: from an SAE": Case(
        lambda lam, D, model, X: sae.unroll_moves(problem(lam), D, 2, start=model).encode(X)
    ),
    "sae.train_unrolled": Case(
        lambda key, lam, w, m, D, X: sae.train_unrolled(full(lam, w, m), D, X, 2, key=key, steps=4, batch_size=8),
        holes={"derivative": "a loop of steps that are counted as it runs has forward derivatives only"},
        heavy=True,
    ),
    "sae.exact_codes": Case(
        lambda model, X, lam, tol: sae.exact_codes(model, X, lam, tol=tol), constant=CONSTANT_PROOF
    ),
    "sae.amortisation_gap": Case(lambda lam, w, m, D, Z, X: sae.amortisation_gap(full(lam, w, m), D, Z, X, tol=1e-9)),
    "sae.SAE: encode and decode": Case(lambda model, X: (model.encode(X), model(X), model.canonical())),
}

# Modules of the package whose functions are no mathematics of arrays.
EXEMPT_MODULES = {
    "growth": "grows, labels and writes on the host; tests/growth",
    "datasets": "reads the data that come with the package",
    "plots": "draws figures",
    "solvers": "classes only, run by fit",
    "streaming": "reads rows and writes codes on the host; tests/streaming",
}

# Whole columns that do not hold, and why.
COLUMN_HOLES = {
    "rank": "formulas broadcast (d,) against (samples, d), as numpy does",
}

# Public callables without a row, and why.
EXEMPT = {
    "audit": "a program for the host that writes a document; tests/auditing",
    "arbitrate": "a program for the host that writes a document; tests/arbitration",
    "polish": "a program for the host that reads rows as it goes; tests/auditing/test_polish.py",
    "fit_stream": "a program for the host that reads rows as it goes; tests/streaming",
    "grow": "a program for the host around fits of widths that values choose; tests/growth",
    "sweep": "a program for the host that writes rows; tests/test_sweeps.py",
    "wide.polar": "branch and bound in numpy, on the host; tests/wide/test_polars.py",
    "wide.certify_size": "branch and bound in numpy, on the host; tests/wide/test_penalised.py",
    "wide.gauge": "a program for the host around solve_size_penalised; tests/wide/test_gauges.py",
    "wide.fewer_atoms": "the number of atoms depends on values; tests/wide/test_gauges.py",
    "wide.size_path": "a program for the host around solve_size_penalised; tests/wide/test_paths.py",
    "wide.tau_max": "local searches in numpy, on the host; tests/wide/test_paths.py",
    "conditions.absorption_by_label": "labels of any kind: for the host only; tests/conditions/test_absorptions.py",
    "sae.load": "reads files; tests/sae",
    "synthetic.load_bench_model": "reads files; tests/test_synthetic_saved.py",
    "synthetic.save_bench_model": "writes files; tests/test_synthetic_saved.py",
    "sae.save": "writes files; tests/sae",
}


def public_functions() -> set[str]:
    """Everything callable that the package exports and that is no class, by the name under which it is used."""
    modules = {f"{name}.": value for name, value in vars(jd).items() if name in EXPORTED and name not in EXEMPT_MODULES}
    found = set()
    for prefix, module in ({"": jd} | modules).items():
        for name, value in vars(module).items():
            home = getattr(value, "__module__", None) or ""
            own = home in (module.__name__, "jaxdict.synthetic_atoms") or hasattr(module, "__path__")
            own = own or home.startswith("jaxdict.synthetic_benchmark.")
            public = own and home.startswith("jaxdict") and not name.startswith("_")
            if public and callable(value) and inspect.isfunction(inspect.unwrap(value)):
                found.add(prefix + name)
    return found


def exported_modules() -> set[str]:
    """The modules that jaxdict's own `from jaxdict import ...` names."""
    tree = ast.parse(inspect.getsource(jd))
    return {
        alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == "jaxdict"
        for alias in node.names
    }


EXPORTED = exported_modules()
