"""Programs for accelerators, made where there is none: every public numeric function lowers for CUDA and TPU as it should.

`jax.export` traces and lowers at small shapes without running anything, float32 in. The text of the module tells whether the
program calls back to the host, holds a float64, or multiplies at less than the highest precision. Programs for 8 simulated
devices are compiled in one subprocess, and their collectives counted.
"""

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

import jaxdict as jd
from jaxdict import conditions, recovery, sae, wide
from jaxdict.auditing import streaming
from jaxdict.certificates.wide_limits import SIGNATURE
from jaxdict.wide import columns

N, D, K, STEPS = 24, 4, 6, 20
PLATFORMS = ("cuda", "tpu")


class Point(NamedTuple):
    """Everything that a function may take: shapes and dtypes only."""

    lam: Any
    dictionary: Any
    codes: Any
    sparse: Any
    X: Any
    v: Any
    key: Any
    keys: Any

    def problem(self, **options):
        return jd.Problem(lam=self.lam, **options)

    def dense(self, **options):
        return self.problem(**options), self.dictionary, self.codes, self.X

    def slots(self, **options):
        return self.problem(**options), self.dictionary, self.sparse, self.X

    def weighted(self):
        return self.dense(metric=self.v, weights=self.X[:, 0] ** 2, gauge="penalised", signed=True)


def form(*shape, dtype=jnp.float32) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


POINT = Point(
    lam=form(),
    dictionary=jd.Dictionary(form(K, D), form(D)),
    codes=form(N, K),
    sparse=jd.SparseCodes(form(N, 3, dtype=jnp.int32), form(N, 3)),
    X=form(N, D),
    v=form(D),
    key=form(2, dtype=jnp.uint32),
    keys=form(2, 2, dtype=jnp.uint32),
)
# Above the widths for which a Gram matrix is formed, codes are found another way.
WIDE = POINT._replace(dictionary=jd.Dictionary(form(2056, D), form(D)))


def encode(**options):
    signed = options.pop("signed", False)
    return lambda p: jd.encode(p.problem(signed=signed), p.dictionary, p.X, **options)


def fit(**options):
    return lambda p: jd.fit(p.problem(), p.X, K, key=p.key, max_steps=STEPS, **options)


def direction(p):
    return jd.steepest_feasible_direction(*p.dense())


def trained_sae(kind, k=None, **options):
    def run(p):
        W = p.dictionary.atoms
        activation = sae.Activation(kind, k=k)
        model = sae.SAE(W.T, W[:, 0], W, p.v, W[:, 0] ** 2, activation=activation, **options)
        return model.encode(p.X), model(p.X), model.canonical(), model.dictionary

    return run


def autoencoder(p):
    return recovery.Autoencoder(p.dictionary.atoms)


def half(n=K):
    return jnp.full(n, 0.5)


def planted(p):
    """Planted data whose second feature is a child of the first."""
    none = jnp.full(K, -1)
    return jd.synthetic.Planted(p.X, p.codes, p.dictionary, none.at[1].set(0), none, "")


# The public function, then the variant -> (point) -> arrays.
FUNCTIONS = {
    "objective": lambda p: jd.objective(*p.dense()),
    "objective: sparse codes": lambda p: jd.objective(*p.slots()),
    "objective: derivative": lambda p: jax.grad(lambda X: jd.objective(*p.weighted()[:3], X))(p.X),
    "residual": lambda p: jd.residual(p.dictionary, p.codes, p.X),
    "correlations": lambda p: jd.correlations(*p.dense()),
    "canonical": lambda p: jd.canonical(p.dictionary, p.codes),
    "dense_codes": lambda p: jd.dense_codes(p.sparse, K),
    "sparse_codes": lambda p: jd.sparse_codes(p.codes, slots=3),
    "lam_max": lambda p: (jd.lam_max(p.X), jd.lam_max(p.X, p.dictionary)),
    "encode": encode(),
    "encode: sparse": encode(sparse=True),
    "encode: gradient": encode(method="gradient"),
    "encode: gradient, sparse, signed": encode(method="gradient", sparse=True, slots=4, signed=True),
    "encode: working_set, signed": encode(method="working_set", signed=True),
    "encode: sparse start": lambda p: encode(codes=p.sparse, sparse=True)(p),
    "encode: wide": lambda p: encode()(p),
    "encode: derivative": lambda p: jax.grad(
        lambda X: jnp.sum(jd.dense_codes(encode(method="gradient")(p._replace(X=X)).codes, K))
    )(p.X),
    "refit_values": lambda p: jd.refit_values(p.dictionary, p.sparse, p.X),
    "refit_values: dense, signed": lambda p: jd.refit_values(p.dictionary, p.codes, p.X, signed=True, slots=3),
    "values_gap": lambda p: jd.values_gap(p.dictionary, p.sparse, p.X),
    "best_subset": lambda p: jd.best_subset(p.dictionary, p.X, 2),
    "best_subset: from codes": lambda p: jd.best_subset(p.dictionary, p.X, 2, start=p.sparse, metric=p.v),
    "optimal_value": lambda p: jd.optimal_value(p.problem(), p.dictionary, p.X, codes=p.codes),
    "optimal_value: derivative": lambda p: jax.grad(
        lambda lam: jd.optimal_value(jd.Problem(lam=lam), p.dictionary, p.X, codes=p.codes)
    )(p.lam),
    "optimality_map": lambda p: jd.optimality_map(*p.dense()),
    "response": lambda p: jd.response(*p.dense(), lam=1.0),
    "certify": lambda p: jd.certify(*p.dense()),
    "certify: sparse codes": lambda p: jd.certify(*p.slots()),
    "certify: metric, weights, signed": lambda p: jd.certify(*p.weighted()),
    "certify: curvature": lambda p: jd.certify(*p.dense(), curvature=True),
    "steepest_feasible_direction": direction,
    "directional_derivative": lambda p: jd.directional_derivative(*p.dense(), direction(p)),
    "fit": fit(),
    "fit: alternating": fit(solver=jd.solvers.Alternating()),
    "fit: quasi-Newton": fit(solver=jd.solvers.QuasiNewton()),
    "fit: projected gradient": fit(solver=jd.solvers.ProjectedGradient()),
    "fit: second order": fit(second_order=True),
    "fit_batch": lambda p: jd.fit_batch(p.problem(), p.X, K, keys=p.keys, max_steps=STEPS),
    "wide.bound": lambda p: wide.bound(p.X, p.lam),
    "wide.loose_bound": lambda p: wide.loose_bound(p.X, p.lam, 0.1, offset=True),
    "wide.polar_height": lambda p: wide.polar_height(p.codes, p.lam),
    "wide.rank_one_gauge": lambda p: wide.rank_one_gauge(p.X[:, 0], p.v, p.lam),
    "wide.rank_one_solution": lambda p: wide.rank_one_solution(p.X[:, 0], p.lam, p.lam),
    "wide.solve_size_penalised: its alternation": lambda p: columns.alternate(
        p.problem(metric=p.v), p.lam, p.X, p.dictionary.atoms, p.codes
    ),
    "wide.solve_size_penalised: its codes": lambda p: columns.solve_codes(
        p.problem(), p.lam, p.X, p.dictionary.atoms, p.codes
    ),
    "wide.solve_size_penalised: its polar": lambda p: columns.candidates(
        p.problem(), p.lam, p.X, p.dictionary.atoms, p.codes
    ),
    "conditions.unit_moments": lambda p: conditions.unit_moments(*p.dense()),
    "conditions.unit_moments: sparse codes": lambda p: conditions.unit_moments(*p.slots()),
    "conditions.barycentre": lambda p: conditions.barycentre(*p.dense()),
    "conditions.barycentre_from_sums": lambda p: conditions.barycentre_from_sums(
        p.problem(), p.dictionary, conditions.unit_moments(*p.dense())
    ),
    "conditions.barycentre_weights": lambda p: conditions.barycentre_weights(*p.dense(), 0),
    "conditions.direction_cost": lambda p: conditions.direction_cost(*p.dense(), direction(p)),
    "conditions.absorption": lambda p: conditions.absorption(p.codes, p.codes[:, 1] > 0, 0, 3),
    "conditions.direction_present": lambda p: conditions.direction_present(p.dictionary, p.codes, p.X, 0, 3),
    "conditions.flat_pairs": lambda p: conditions.flat_pairs(
        p.dictionary, p.codes, jnp.array([0, 1]), jnp.array([2, 3])
    ),
    "conditions.prefix_pairs": lambda p: conditions.prefix_pairs(p.dictionary, p.codes, p.X, (2, K), 0, 3),
    "conditions.penalty_cosines": lambda p: conditions.penalty_cosines(p.dictionary, p.codes, jnp.sqrt, 0, 3),
    "conditions.pair_costs": lambda p: conditions.pair_costs(*p.dense(), jnp.array([0, 1]), jnp.array([2, 3])),
    "conditions.turning_gains": lambda p: conditions.turning_gains(
        p.dictionary.atoms, p.dictionary.atoms, p.dictionary.atoms[:, 0]
    ),
    "conditions.antipodal": lambda p: conditions.antipodal(p.dictionary, p.codes),
    "conditions.exclusive": lambda p: conditions.exclusive(p.codes),
    "conditions.exclusive: sparse codes": lambda p: conditions.exclusive(p.sparse, n_atoms=K),
    "conditions.hierarchy": lambda p: conditions.hierarchy(p.codes, dictionary=p.dictionary),
    "conditions.absorption_direction": lambda p: conditions.absorption_direction(p.dictionary, p.codes, 0, 1),
    "conditions.predicted_cosine": lambda p: conditions.predicted_cosine(p.codes, p.lam),
    "conditions.hull": lambda p: conditions.hull(p.dictionary, p.codes, 0),
    "conditions.hull_direction": lambda p: conditions.hull_direction(
        p.dictionary, p.codes, 0, conditions.hull(p.dictionary, p.codes, 0)
    ),
    "conditions.row_direction": lambda p: conditions.row_direction(p.dictionary, p.codes, 0, half()),
    "conditions.pair_statistics": lambda p: conditions.pair_statistics(p.codes),
    "conditions.pair_statistics: sparse codes": lambda p: conditions.pair_statistics(p.sparse, n_atoms=K),
    "conditions.merge_pair_statistics": lambda p: conditions.merge_pair_statistics(
        *(conditions.pair_statistics(Z) for Z in (p.codes, 2 * p.codes))
    ),
    "conditions.pairs_from_statistics": lambda p: conditions.pairs_from_statistics(
        p.dictionary, conditions.pair_statistics(p.codes)
    ),
    "conditions.pairs": lambda p: conditions.pairs(p.dictionary, p.codes),
    "conditions.mop_up": lambda p: conditions.mop_up(*p.dense(), 0, p.v),
    "conditions.mop_up_direction": lambda p: conditions.mop_up_direction(
        *p.dense()[:3], 0, conditions.mop_up(*p.dense(), 0, p.v)
    ),
    "conditions.residual": lambda p: conditions.residual(*p.dense()),
    "conditions.residual_from_sums": lambda p: conditions.residual_from_sums(
        p.problem(), p.dictionary, conditions.unit_moments(*p.dense())
    ),
    "conditions.residual_samples": lambda p: conditions.residual_samples(*p.dense(), 0, p.v),
    "sae.SAE: relu": trained_sae("relu"),
    "sae.SAE: jumprelu, layer norm": trained_sae("jumprelu", normalisation="layer_norm"),
    "sae.SAE: topk": trained_sae("topk", k=2),
    "sae.SAE: abstopk": trained_sae("abstopk", k=2),
    "sae.SAE: groupmax": trained_sae("groupmax", k=2),
    "sae.SAE: matching pursuit": trained_sae("matching_pursuit", k=2),
    "sae.training_loss": lambda p: jax.grad(sae.training_loss)(sae.tied_sae(p.dictionary, 0.3), p.X, p.lam),
    "sae.tied_sae": lambda p: sae.tied_sae(p.dictionary, 0.3).encode(p.X),
    "sae.unroll": lambda p: sae.unroll(p.problem(), p.dictionary, 3).encode(p.X),
    "sae.unroll_moves": lambda p: sae.unroll_moves(p.problem(), p.dictionary, 3).encode(p.X),
    "sae.train_unrolled": lambda p: sae.train_unrolled(
        p.problem(), p.dictionary, p.X, 2, key=p.key, steps=STEPS, batch_size=8
    ),
    "sae.exact_codes": lambda p: sae.exact_codes(sae.tied_sae(p.dictionary, 0.3), p.X, p.lam),
    "sae.amortisation_gap": lambda p: sae.amortisation_gap(*p.dense()),
    "sae.fitted_sae: its regression": lambda p: importlib.import_module("jaxdict.sae.encoders")._fit(
        p.X, p.codes, p.dictionary.atoms.T, p.dictionary.atoms[:, 0], 1e-4, STEPS
    ),
    "audit: its pass": lambda p: streaming._chunk(
        sae.SAE(p.dictionary.atoms.T, half(), p.dictionary.atoms, p.v), p.X, p.X[:, 0] > 0, p.v, True
    ),
    "recovery.assignment": lambda p: recovery.assignment(p.X[:D]),
    "recovery.bench_absorption": lambda p: recovery.bench_absorption(p.dictionary, planted(p), latents=p.sparse).found,
    "recovery.bench_metrics": lambda p: recovery.bench_metrics(p.dictionary, planted(p), latents=p.codes),
    "recovery.bench_metrics_from_sums": lambda p: recovery.bench_metrics_from_sums(
        p.dictionary, p.dictionary, recovery.bench_sums(p.dictionary, planted(p), latents=p.codes)
    ),
    "recovery.bench_sums": lambda p: recovery.bench_sums(sae.tied_sae(p.dictionary, 0.3), planted(p)),
    "recovery.errors_by_dimension": lambda p: recovery.errors_by_dimension(autoencoder(p), p.X),
    "recovery.reconstruction_loss": lambda p: recovery.reconstruction_loss(autoencoder(p), p.X, metric=p.v),
    "recovery.penalty_term": lambda p: recovery.penalty_term(autoencoder(p), p.X),
    "recovery.ground_truth_loss": lambda p: recovery.ground_truth_loss(p.codes, p.codes, scale=True),
    "recovery.closed_form": lambda p: recovery.closed_form(p.dictionary.atoms),
    "recovery.judge": lambda p: recovery.judge(p.key, p.dictionary.atoms, p.codes, restarts=2, steps=STEPS),
    "recovery.digon_output": lambda p: recovery.digon_output(p.X[:, :2]),
    "recovery.digon_rates": lambda p: recovery.digon_rates(p.v[:2]),
    "recovery.loss_gaps": lambda p: recovery.loss_gaps(autoencoder(p), p.codes, p.X),
    "recovery.recovery_rate": lambda p: recovery.recovery_rate(p.v, p.v),
    "recovery.simulated_rates": lambda p: recovery.simulated_rates(p.X[:, :2], p.codes[:, :2]),
    "recovery.sparse_features": lambda p: recovery.sparse_features(p.key, N, half()),
    "recovery.stratified_features": lambda p: recovery.stratified_features(p.key, 2, half(2)),
    "recovery.agreement": lambda p: recovery.agreement(jnp.stack([p.dictionary.atoms] * 2), p.v[:2]),
    "recovery.alignment": lambda p: recovery.alignment(p.dictionary.atoms, p.dictionary.atoms),
    "recovery.average_active": lambda p: recovery.average_active(p.codes),
    "recovery.row_distance": lambda p: recovery.row_distance(p.dictionary.atoms, p.dictionary.atoms),
    "recovery.dimension_variance": lambda p: recovery.dimension_variance(p.X),
    "recovery.learned_metric": lambda p: recovery.learned_metric(p.v, p.lam),
    "recovery.metric_from": lambda p: recovery.metric_from(p.X, p.lam),
    "recovery.reweight": lambda p: recovery.reweight(p.v, p.lam),
    "recovery.semantic_consistency": lambda p: recovery.semantic_consistency(p.X, jnp.arange(N) % 3, top=5, n_labels=3),
    "recovery.block_map": lambda p: recovery.block_map(p.dictionary.atoms, p.dictionary.atoms),
    "recovery.dimensions_per_feature": lambda p: recovery.dimensions_per_feature(p.dictionary.atoms),
    "recovery.single_feature_error": lambda p: recovery.single_feature_error(p.dictionary.atoms),
    "recovery.superpose": lambda p: recovery.superpose(p.codes, p.dictionary.atoms),
    "recovery.learned_map": lambda p: recovery.learned_map(p.key, half(), D, steps=STEPS),
    "recovery.random_map": lambda p: recovery.random_map(p.key, K, D),
    "recovery.train": lambda p: recovery.train(p.key, p.X, K, steps=STEPS),
    "recovery.train: k largest, learned metric": lambda p: recovery.train(
        p.key, p.X, K, steps=STEPS, k=2, bias=True, tied=False, temperature=p.lam
    ),
    "recovery.train_batch": lambda p: recovery.train_batch(p.keys, p.X, K, steps=STEPS),
    "recovery.recover": lambda p: recovery.recover(p.key, p.dictionary.atoms, half(), steps=STEPS, n_samples=32),
    "recovery.sweep_recovery": lambda p: recovery.sweep_recovery(
        p.key, p.dictionary.atoms, jnp.array([0.5, 0.9]), restarts=2, steps=STEPS, n_samples=32
    ),
}
SLOW = (
    "fit_batch",
    "fit",
    "encode: wide",
    "best_subset",
    "best_subset: from codes",
    "recovery.bench_metrics",
    "certify: curvature",
    "response",
    "fit: alternating",
    "fit: quasi-Newton",
    "fit: projected gradient",
    "fit: second order",
    "certify: metric, weights, signed",
    "certify: sparse codes",
    "recovery.sweep_recovery",
)
# Public functions that are no program of their own, and why.
ON_THE_HOST = {
    "fit_stream": "reads rows that do not fit in memory; its chunks' programs are those of encode and birth",
    "grow": "fits of widths that values choose, driven from Python; its programs are those of fit and of joint_births",
    "conditions.absorption_by_label": "labels are texts",
    "audit": "reads rows that do not fit in memory, chunk by chunk; the chunk's program is above",
    "arbitrate": "measures of several SAEs with choices on values between them; its programs are those of its pieces",
    "polish": "reads rows that do not fit in memory; fits, encoders and comparisons with checks on values between them",
    "sweep": "a Python loop over programs of fit_batch, with rows written to disk",
    "wide.solve_size_penalised": "column generation: the number of atoms grows; its jitted pieces are above",
    "wide.certify_size": "branch and bound whose cells are counted as it goes, in float64",
    "wide.polar": "branch and bound whose cells are counted as it goes, in float64",
    "wide.gauge": "rounds of solve_size_penalised",
    "wide.fewer_atoms": "the number of atoms depends on values",
    "wide.size_path": "solve_size_penalised along prices of an atom",
    "wide.tau_max": "local searches in float64, a start of size_path",
    "sae.fitted_sae": "refuses negative codes by their values; its jitted regression is above",
    "sae.train": "a Python loop over programs of a hundred steps, with a callback between them",
    "sae.train_batch": "as sae.train",
    "sae.load": "reads files",
    "sae.save": "writes files",
    "sae.check_activations": "raises errors, computes nothing",
    "recovery.label_numbers": "numbers labels of any Python type",
    "recovery.digon_map": "a constant",
    "recovery.identity_map": "a constant",
    "recovery.polygon_map": "a constant",
    "recovery.tetrahedron_map": "a constant",
}


def public_functions():
    """Names as the user writes them after `jd.`; plots, data sets and generators of data are no programs for a device."""
    for prefix, module in (
        ("", jd),
        ("conditions.", conditions),
        ("wide.", wide),
        ("recovery.", recovery),
        ("sae.", sae),
    ):
        for name, member in vars(module).items():
            function = inspect.isfunction(inspect.unwrap(member)) and not name.startswith("_")
            if function and (hasattr(module, "__path__") or member.__module__ == module.__name__):
                yield prefix + name


def test_every_public_function_is_exported_or_has_its_reason():
    tested = {name.split(":")[0] for name in FUNCTIONS}
    assert set(public_functions()) - tested - set(ON_THE_HOST) == set()
    assert set(ON_THE_HOST) <= set(public_functions())


def text_of(function, point, platform, **options):
    return jax.export.export(jax.jit(function), platforms=[platform], **options)(point).mlir_module()


def callbacks(text):
    targets = re.findall(r"custom_call @([\w.$]+)|(stablehlo\.send|stablehlo\.recv|infeed|outfeed)", text)
    return [name for pair in targets for name in pair if re.search("callback|send|recv|infeed|outfeed", name)]


def imprecise(text):
    products = re.findall(r"stablehlo\.(?:dot_general|dot|convolution)\b.*", text)
    return [line for line in products if "precision = [HIGHEST, HIGHEST]" not in line]


def doubles(text):
    return re.findall(r"tensor<(?:[\dx?]*x)?(?:f64|complex<f64>)>", text)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in FUNCTIONS])
def test_programs_for_accelerators(name):
    point = WIDE if name.endswith(": wide") else POINT
    with jax.enable_x64(False):
        for platform in PLATFORMS:
            text = text_of(FUNCTIONS[name], point, platform)
            assert not callbacks(text), platform
            assert not doubles(text), platform
            assert not imprecise(text), platform


def test_the_three_checks_can_fail():
    with jax.enable_x64(False):
        assert imprecise(text_of(lambda p: p.X @ p.v, POINT, "tpu"))
        assert imprecise(text_of(lambda p: jnp.matmul(p.X, p.v, precision="high"), POINT, "tpu"))
        assert callbacks(for_this_machine(fit(callback=print)))
    assert doubles(text_of(lambda p: p.X.astype(float), POINT, "tpu"))


def test_only_programs_for_a_cpu_hold_the_compiled_kernels():
    pytest.importorskip("numba")
    with jax.enable_x64(False):
        for method, held in (("numba", True), ("auto", True), ("working_set", False)):
            text = for_this_machine(encode(method=method))
            assert ("custom_call @jaxdict_" in text) == held
            assert not callbacks(text)  # kernels are called by XLA itself, never through Python
        for platform in PLATFORMS:
            assert "custom_call @jaxdict_" not in text_of(encode(), POINT, platform)


def for_this_machine(function):
    return jax.jit(function).trace(POINT).lower(lowering_platforms=("cpu",)).as_text()


SHARDED = """
import json, re, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import jaxdict as jd
from jaxdict.certificates.births import birth
from jaxdict.objectives import moments
assert jax.device_count() == 8
n, d, k = 512, 11, 7
mesh = Mesh(np.array(jax.devices()), ("samples",))
rows, whole = NamedSharding(mesh, P("samples", None)), NamedSharding(mesh, P())
form = lambda *shape, on=whole: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=on)
inputs = form(), jd.Dictionary(form(k, d), form(d)), form(n, k, on=rows), form(n, d, on=rows)
problem = lambda lam: jd.Problem(lam=lam)
functions = {
    "objective": lambda lam, D, Z, X: jd.objective(problem(lam), D, Z, X),
    "gradient of the objective": lambda lam, D, Z, X: jax.grad(lambda D: jd.objective(problem(lam), D, Z, X))(D),
    "moments": lambda lam, D, Z, X: moments(problem(lam), D, Z, X),
    "optimality_map": lambda lam, D, Z, X: jd.optimality_map(problem(lam), D, Z, X),
    "steepest_feasible_direction": lambda lam, D, Z, X: jd.steepest_feasible_direction(problem(lam), D, Z, X),
    "birth": lambda lam, D, Z, X: birth(problem(lam), D, Z, X),
    "certify": lambda lam, D, Z, X: jd.certify(problem(lam), D, Z, X),
    "encode: gradient": lambda lam, D, Z, X: jd.encode(problem(lam), D, X, method="gradient").codes,
    "encode: working_set": lambda lam, D, Z, X: jd.encode(problem(lam), D, X, method="working_set").codes,
    "wide.bound": lambda lam, D, Z, X: jd.wide.bound(X, lam),
}
found = {}
for name in json.loads(sys.argv[1]):
    program = jax.jit(functions[name]).lower(*inputs).compile()
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|collective-broadcast|reduce-scatter|ragged-all-to-all"
    seen = re.findall(rf"= (\\S.*?) ({kinds})(?:-start)?\\(", program.as_text())
    size = lambda shape: int(np.prod([int(part) for part in shape.split(",") if part]))
    sizes = [[kind, max(size(shape) for shape in re.findall(r"\\w+\\[([\\d,]*)\\]", out))] for out, kind in seen]
    spread = [not s.is_fully_replicated for s in jax.tree.leaves(program.output_shardings)]
    found[name] = {"sizes": sizes, "spread": spread}
print(json.dumps(found))
"""
SAMPLES, SMALL = 512, 96  # rows of X; more than atoms x dimensions = 77


def compiled_for_eight(names):
    quick = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    env = {**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {quick}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SHARDED, json.dumps(names)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


# What moves between devices is at most so large: sums over samples, or few numbers a sample (to rank samples, and to tell rays apart).
BOUNDS = {
    "objective": SMALL,
    "gradient of the objective": SMALL,
    "moments": SMALL,
    "optimality_map": SMALL,
    "steepest_feasible_direction": SMALL,
    "encode: gradient": SMALL,
    "encode: working_set": SMALL,
    "birth": SAMPLES,
    "certify": SIGNATURE * SAMPLES,
    "wide.bound": SIGNATURE * SAMPLES,
}


@pytest.fixture(scope="module")
def eight():
    return compiled_for_eight(list(BOUNDS))


@pytest.mark.slow
@pytest.mark.parametrize("name", BOUNDS)
def test_collectives_are_sums_over_samples(eight, name):
    sizes = eight[name]["sizes"]
    assert all(size <= BOUNDS[name] for _, size in sizes), sizes
    if BOUNDS[name] == SMALL:
        assert {kind for kind, _ in sizes} <= {"all-reduce"}, sizes


@pytest.mark.slow
def test_what_is_per_sample_stays_where_its_sample_is(eight):
    assert eight["encode: gradient"]["spread"] == eight["encode: working_set"]["spread"] == [True]
    assert eight["objective"]["spread"] == [False]
