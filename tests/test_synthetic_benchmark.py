"""SynthSAEBench by key: laws, hierarchies, compensation, exclusion, correlations and atoms are what their formulas say."""

import itertools
import json
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from jaxdict import synthetic
from jaxdict.synthetic import Forest, LowRank, Orthogonal, firing, sizes
from jaxdict.synthetic_benchmark.forests import compensated, grow
from jaxdict.synthetic_benchmark.models import low_rank
from jaxdict.synthetic_benchmark.orthogonal_atoms import crowding

KEY = jax.random.key(0)
ROWS = 20_000
# One root, two children that exclude one another, of which the first has two children that do.
PAIRS = Forest(roots=1, branching=2, depth=2, exclusive=1.0)


def within(rates, wanted, rows, errors=4.5):
    """Shares of rows are those wanted, to so many binomial standard errors."""
    wanted = np.asarray(wanted)
    np.testing.assert_array_less(np.abs(rates - wanted), errors * np.sqrt(wanted * (1 - wanted) / rows) + 1e-12)


def model_of(probabilities, forest=None, *, means=1.0, spreads=0.0, d=3, **options):
    """A model whose features are drawn with these probabilities, as they are."""
    n = len(probabilities)
    made = synthetic.bench_model(KEY, n, d, forest=forest, means=means, spreads=spreads, **options)
    return eqx.tree_at(lambda model: model.probabilities, made, jnp.asarray(probabilities, float))


@pytest.fixture(scope="module")
def trees():
    """A model of five features whose exclusion and hierarchy both matter, and many rows of it."""
    model = model_of([0.7, 0.6, 0.5, 0.4, 0.8], PAIRS)
    return model, synthetic.bench_sample(jax.random.key(3), model, ROWS)


@pytest.mark.parametrize(
    ("law", "wanted"),
    [
        (firing.Zipfian(0.5, 0.4, 5e-4), lambda i: i**-0.5),
        (firing.Zipfian(2.0), lambda i: i**-2.0),
        (firing.Linear(0.4, 0.1), lambda i: -i),
    ],
)
def test_firing_falls_from_its_largest_to_its_smallest(law, wanted):
    shape = wanted(np.arange(1.0, 8))
    shape = (shape - shape.min()) / (shape.max() - shape.min())
    np.testing.assert_allclose(law.draw(KEY, 7), law.min_prob + (law.max_prob - law.min_prob) * shape, rtol=1e-12)
    np.testing.assert_allclose(law.draw(KEY, 1), [law.max_prob])


def test_random_firing_and_folded_normal_sizes_have_their_law():
    drawn = np.asarray(firing.Random(0.5, 0.1).draw(KEY, 4000))
    assert drawn.min() > 0.1
    assert drawn.max() < 0.5
    assert drawn.mean() == pytest.approx(0.3, abs=4 * 0.4 / math.sqrt(12 * 4000))
    folded = np.asarray(sizes.FoldedNormal(0.5, 0.5).draw(KEY, 4000))
    mean = 0.5 * (math.sqrt(2 / math.pi) * math.exp(-0.5) + 1 - 2 * norm.cdf(-1))
    assert folded.mean() == pytest.approx(mean, abs=4 * math.sqrt((0.5 - mean**2) / 4000))
    kept = np.asarray(sizes.FoldedNormal(0.5, 0.5, 0.2, 0.6).draw(KEY, 200))
    assert (kept.min(), kept.max()) == (0.2, 0.6)


def nodes_by_hand(n, roots, branching, depth):
    """Parents and levels of trees that are built one node at a time."""
    parents, levels, last = [-1] * n, [-1] * n, []
    numbers = iter(range(n))
    for feature in itertools.islice(numbers, roots):
        levels[feature] = 0
        last.append(feature)
    for level in range(1, depth + 1):
        made = []
        for parent in last:
            for feature in itertools.islice(numbers, branching):
                parents[feature], levels[feature] = parent, level
                made.append(feature)
        last = made
    return parents, levels


@pytest.mark.parametrize("size", [(30, 3, 2, 2), (17, 2, 3, 3), (2, 5, 2, 1), (9, 1, 1, 3)])
def test_a_forest_is_numbered_level_by_level(size):
    n, roots, branching, depth = size
    grown = grow(KEY, n, Forest(roots=roots, branching=branching, depth=depth))
    assert (grown.parents.tolist(), grown.levels.tolist()) == nodes_by_hand(*size)


def test_children_drawn_in_number_keep_to_their_bounds():
    grown = grow(KEY, 400, Forest(roots=9, branching=(2, 5), depth=3))
    parents, levels = np.asarray(grown.parents), np.asarray(grown.levels)
    families = np.bincount(parents[parents >= 0], minlength=400)
    inner = (levels >= 0) & (levels < 3) & (np.arange(400) < parents.max())
    assert set(families[inner]) == {2, 3, 4, 5}
    assert (levels[parents[parents >= 0]] + 1 == levels[parents >= 0]).all()
    assert set(levels) == {0, 1, 2, 3, -1} or set(levels) == {0, 1, 2, 3}


@pytest.mark.slow
@pytest.mark.parametrize(("portion", "least", "most"), [(0.5, 0, None), (1.0, 1, 1), (0.34, 0, 0), (1.0, 0, None)])
def test_so_many_parents_have_children_that_exclude_one_another(portion, least, most):
    grown = grow(
        KEY, 40, Forest(roots=4, branching=3, depth=2, exclusive=portion, exclusive_from=least, exclusive_to=most)
    )
    parents, levels, groups = (np.asarray(part) for part in grown)
    families = np.bincount(parents[parents >= 0], minlength=40)
    eligible = (families >= 2) & (levels >= least) & (levels <= (9 if most is None else most))
    chosen = np.unique(parents[groups >= 0])
    assert len(chosen) == int(portion * eligible.sum())
    assert eligible[chosen].all()
    for parent in chosen:
        assert set(groups[parents == parent]) == {np.flatnonzero(parents == parent)[0]}


def test_compensated_rates_are_those_asked_for():
    forest = Forest(roots=2, branching=2, depth=2, compensate=True)
    law = firing.Linear(0.5, 0.05)
    model = synthetic.bench_model(KEY, 14, 3, firing=law, forest=forest)
    found = synthetic.bench_sample(jax.random.key(1), model, ROWS)
    assert float(model.probabilities.max()) < 1
    within(np.asarray(found.codes > 0).mean(axis=0), law.draw(KEY, 14), ROWS)
    raw = synthetic.bench_model(KEY, 14, 3, firing=law, forest=Forest(roots=2, branching=2, depth=2))
    np.testing.assert_allclose(raw.probabilities, law.draw(KEY, 14), rtol=1e-12)


def test_compensation_of_exclusive_children_by_hand():
    p, parents, groups = (
        jnp.array([0.5, 0.2, 0.1, 0.3, 0.1]),
        jnp.array([-1, 0, 0, 0, 1]),
        jnp.array([-1, 1, 1, -1, -1]),
    )
    wanted = [0.5, 0.2 / 0.5 * (1 + 0.1 / 0.5), 0.1 / 0.5 * (1 + 0.2 / 0.5), 0.3 / 0.5, 0.1 / 0.2]
    np.testing.assert_allclose(compensated(p, parents, groups), wanted)
    np.testing.assert_allclose(compensated(jnp.array([0.2, 0.9]), jnp.array([-1, 0]), None), [0.2, 1.0])
    np.testing.assert_allclose(compensated(jnp.array([0.0, 0.9]), jnp.array([-1, 0]), None), [0.0, 0.9])


def test_exclusive_children_fire_at_the_rate_that_theory_gives(trees):
    """A child's rate is `p_parent p E[1 / (1 + K)]`, and `E[1 / (1 + K)]` of one rival that fires with q is `1 - q / 2`."""
    model, found = trees
    p = np.asarray(model.probabilities)
    rates = [p[0], p[0] * p[1] * (1 - p[2] / 2), p[0] * p[2] * (1 - p[1] / 2)]
    rates += [rates[1] * p[3] * (1 - p[4] / 2), rates[1] * p[4] * (1 - p[3] / 2)]
    on = np.asarray(found.codes > 0)
    within(on.mean(axis=0), rates, ROWS)
    assert not (on[:, 1] & on[:, 2]).any()
    assert not (on[:, 3] & on[:, 4]).any()
    assert not (on[:, 1:3] & ~on[:, :1]).any()
    assert not (on[:, 3:] & ~on[:, 1:2]).any()


def patterns_in_their_order(p, parents, levels, groups):
    """The chance of every pattern, enumerated: level by level children pass their parents, then of a parent's group one is kept."""
    chances: dict[tuple, float] = {}
    for raw in itertools.product((0, 1), repeat=len(p)):
        chance = math.prod(q if on else 1 - q for q, on in zip(p, raw, strict=True))
        states = [(raw, chance)]
        for level in range(max(levels) + 1):
            passed = [
                (
                    tuple(
                        on and (parents[k] < 0 or levels[k] != level or state[parents[k]]) for k, on in enumerate(state)
                    ),
                    c,
                )
                for state, c in states
            ]
            states = []
            for state, c in passed:
                split = [(state, c)]
                for group in {g for k, g in enumerate(groups) if g >= 0 and levels[parents[k]] == level}:
                    members = [k for k, g in enumerate(groups) if g == group]
                    split = [one for part, share in split for one in _kept_one(part, share, members, parents)]
                states += split
        for state, c in states:
            at = tuple(map(bool, state))
            chances[at] = chances.get(at, 0) + c
    return chances


def _kept_one(state, chance, members, parents):
    on = [k for k in members if state[k]]
    if len(on) < 2 or not state[parents[members[0]]]:
        return [(state, chance)]
    lost = lambda kept: tuple(v and (k not in on or k == kept) for k, v in enumerate(state))  # noqa: E731
    return [(lost(kept), chance / len(on)) for kept in on]


def test_patterns_have_the_chances_of_exclusion_level_by_level(trees):
    model, found = trees
    structure = [np.asarray(part).tolist() for part in (model.parents, model.levels, model.groups)]
    chances = patterns_in_their_order(np.asarray(model.probabilities), *structure)
    assert sum(chances.values()) == pytest.approx(1)
    seen = {tuple(row): 0 for row in chances}
    for row in np.asarray(found.codes > 0).tolist():
        seen[tuple(row)] += 1
    within(np.array([seen[row] for row in chances]) / ROWS, np.array(list(chances.values())), ROWS, errors=5)


@pytest.mark.parametrize("size", [pytest.param(2, marks=pytest.mark.slow), 5])
def test_each_of_a_group_stays_with_the_same_chance(size):
    model = model_of([1.0] * (size + 1), Forest(roots=1, branching=size, depth=1, exclusive=1.0))
    on = np.asarray(synthetic.bench_sample(KEY, model, ROWS).codes > 0)[:, 1:]
    assert (on.sum(axis=1) == 1).all()
    within(on.mean(axis=0), np.full(size, 1 / size), ROWS)


def test_scaled_children_go_by_their_parents():
    forest = Forest(roots=1, branching=1, depth=2, scale_by_parent=True)
    model = model_of([1.0, 1.0, 1.0], forest, means=sizes.Linear(2.0, 4.0))
    model = eqx.tree_at(lambda made: made.spreads, model, jnp.array([1.5, 0.0, 0.0]))
    codes = np.asarray(synthetic.bench_sample(KEY, model, 2000).codes)
    np.testing.assert_allclose(codes[:, 1], 3.0 * codes[:, 0] / 2.0)
    np.testing.assert_allclose(codes[:, 2], 4.0 * codes[:, 1] / 3.0)
    share = norm.cdf(2.0 / 1.5)  # sizes below zero are none
    within((codes[:, 0] > 0).mean(), share, 2000)
    plain = eqx.tree_at(lambda made: made.scaled, model, jnp.zeros(3, bool))
    codes = np.asarray(synthetic.bench_sample(KEY, plain, 2000).codes)
    np.testing.assert_array_equal(codes[:, 1], np.where(codes[:, 0] > 0, 3.0, 0.0))


def test_sizes_have_their_means_and_spreads():
    model = model_of([1.0, 0.5], means=5.0, spreads=0.5)
    codes = np.asarray(synthetic.bench_sample(KEY, model, ROWS).codes)
    drawn = codes[:, 1][codes[:, 1] > 0]
    for column in (codes[:, 0], drawn):
        assert column.mean() == pytest.approx(5.0, abs=5 * 0.5 / math.sqrt(len(column)))
        assert column.std() == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(2 * len(column)))


def test_correlated_features_are_on_together_as_often_as_the_normals_say():
    p, F = np.array([0.3, 0.2, 0.1]), np.array([[0.6, 0.2], [0.5, -0.1], [-0.6, 0.4]])
    model = model_of(p, correlation=LowRank(2, 0.1))
    diagonal = jnp.asarray(1 - (F**2).sum(axis=1))
    model = eqx.tree_at(lambda made: (made.factor, made.diagonal), model, (jnp.asarray(F), diagonal))
    on = np.asarray(synthetic.bench_sample(KEY, model, ROWS).codes > 0)
    within(on.mean(axis=0), p, ROWS)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        both = multivariate_normal.cdf(norm.ppf(p[[i, j]]), cov=[[1, F[i] @ F[j]], [F[i] @ F[j], 1]])
        within((on[:, i] & on[:, j]).mean(), both, ROWS)


def test_low_rank_factors_leave_a_unit_diagonal():
    factor, diagonal = low_rank(KEY, 40, LowRank(5, 0.1))
    np.testing.assert_allclose(np.diag(factor @ factor.T) + diagonal, 1)
    np.testing.assert_allclose(factor, 0.1 * jax.random.normal(KEY, (40, 5)), rtol=1e-12)  # nothing to shrink
    factor, diagonal = low_rank(KEY, 40, LowRank(5, 1.0))
    assert float((factor**2).sum(axis=1).max()) == pytest.approx(0.99)
    np.testing.assert_allclose(np.diag(factor @ factor.T) + diagonal, 1)


@pytest.mark.parametrize("shape", [(7, 3), pytest.param((3, 5), marks=pytest.mark.slow)])
def test_crowding_is_what_its_formula_says_and_adam_goes_down_it(shape):
    atoms = jax.random.normal(KEY, shape)
    n = shape[0]

    def stated(atoms):
        gram = atoms @ atoms.T
        apart = gram * (1 - jnp.eye(n))
        return jnp.sum(apart**2) + n * jnp.sum((jnp.diagonal(gram) - 1) ** 2)

    slope_of = jax.jit(jax.grad(stated))
    np.testing.assert_allclose(crowding(atoms), stated(atoms), rtol=1e-10)
    np.testing.assert_allclose(jax.grad(crowding)(atoms), slope_of(atoms), rtol=1e-9, atol=1e-9)
    walk = np.asarray(atoms / np.linalg.norm(atoms, axis=1, keepdims=True))
    first, second = np.zeros(shape), np.zeros(shape)
    for step in range(1, 4):
        slope = np.asarray(slope_of(jnp.asarray(walk)))
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        walk = walk - 0.01 * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    walk /= np.linalg.norm(walk, axis=1, keepdims=True)
    np.testing.assert_allclose(synthetic.orthogonalise(atoms, 3, 0.01), walk, rtol=1e-6, atol=1e-7)


def test_rows_are_offset_plus_codes_times_atoms_and_the_same_under_jit(trees):
    model, found = trees
    np.testing.assert_allclose(found.X, found.codes @ model.dictionary.atoms + model.dictionary.offset, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(model.dictionary.atoms, axis=1), 1)
    assert float(jnp.linalg.norm(model.dictionary.offset)) == pytest.approx(1)
    assert found.pairs() == model.edges() == [(0, 1), (0, 2), (1, 3), (1, 4)]
    again = jax.jit(lambda key, model: synthetic.bench_sample(key, model, 30))(jax.random.key(3), model)
    here = synthetic.bench_sample(jax.random.key(3), model, 30)
    np.testing.assert_array_equal(again.codes, here.codes)


@pytest.mark.slow
def test_float32_models_give_float32_rows_and_keys_and_models_are_mapped():
    model = synthetic.bench_model(
        KEY,
        5,
        3,
        forest=PAIRS,
        correlation=LowRank(2),
        spreads=sizes.FoldedNormal(),
        orthogonal=Orthogonal(2),
        offset=0.0,
    )
    single = jax.tree.map(lambda leaf: leaf.astype(np.float32) if leaf.dtype == np.float64 else leaf, model)
    assert synthetic.bench_sample(KEY, single, 4).X.dtype == np.float32
    assert not model.dictionary.offset.any()
    keys = jax.random.split(KEY, 2)
    many = jax.vmap(lambda key: synthetic.bench_model(key, 5, 3, forest=PAIRS))(keys)
    drawn = jax.vmap(lambda key, model: synthetic.bench_sample(key, model, 4))(keys, many)
    one = synthetic.bench_sample(keys[1], synthetic.bench_model(keys[1], 5, 3, forest=PAIRS), 4)
    np.testing.assert_allclose(drawn.X[1], one.X, atol=1e-12)


@pytest.mark.slow
def test_the_model_of_16384_features_states_what_theirs_states():
    small = {**synthetic.SYNTH_SAE_BENCH_16K, "n_features": 700, "d": 4, "orthogonal": Orthogonal(1, 3e-4)}
    model = synthetic.bench_model(KEY, **small)
    config = json.loads(model.config)
    assert config["firing_probability"] == {
        "generator_name": "zipfian", "exponent": 0.5, "max_prob": 0.4, "min_prob": 0.0005,
    }  # fmt: skip
    assert config["mean_firing_magnitudes"] == {"generator_name": "linear", "start": 5.0, "end": 4.0}
    assert config["std_firing_magnitudes"]["generator_name"] == "folded_normal"
    assert config["hierarchy"] == {
        "total_root_nodes": 128, "branching_factor": 4, "max_depth": 3, "mutually_exclusive_portion": 1.0,
        "mutually_exclusive_min_depth": 0, "mutually_exclusive_max_depth": None, "compensate_probabilities": True,
        "scale_children_by_parent": True,
    }  # fmt: skip
    assert (config["correlation"]["rank"], config["bias"]) == (25, 0.5)
    assert synthetic.SYNTH_SAE_BENCH_16K["n_features"] == 16384
    assert float(jnp.linalg.norm(model.dictionary.offset)) == pytest.approx(0.5)
    assert bool(model.scaled[128:640].all())


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: firing.Zipfian(max_prob=0.1, min_prob=0.2), "min_prob=0.2"),
        (lambda: firing.Zipfian(exponent=0.0), "exponent=0"),
        (lambda: firing.Linear(1.5, 0.1), "max_prob=1.5"),
        (lambda: firing.Constant(-0.1), "probability=-0.1"),
        (lambda: sizes.Linear(0.0, 1.0), "start=0"),
        (lambda: sizes.FoldedNormal(std=0.0), "std=0"),
        (lambda: sizes.FoldedNormal(min_value=2.0, max_value=1.0), "max_value=1"),
        (lambda: sizes.Constant(-1.0), "value=-1"),
        (lambda: Forest(roots=0), "roots=0"),
        (lambda: Forest(branching=(4, 2)), "branching"),
        (lambda: Forest(exclusive=1.5), "exclusive=1.5"),
        (lambda: Forest(exclusive_from=2, exclusive_to=1), "exclusive_to=1"),
        (lambda: synthetic.bench_model(KEY, 0, 3), "n_features=0"),
        (lambda: synthetic.bench_model(KEY, 3, 3, firing=0.3), "firing=0.3"),
        (lambda: synthetic.bench_model(KEY, 3, 3, means="large"), "means='large'"),
        (lambda: synthetic.bench_model(KEY, 3, 3, forest=(2, 2)), r"forest=\(2, 2\)"),
        (lambda: synthetic.bench_model(KEY, 3, 3, correlation=LowRank(0)), "rank=0"),
        (lambda: synthetic.bench_model(KEY, 3, 3, offset=-1.0), "offset=-1"),
        (lambda: synthetic.bench_sample(KEY, model_of([0.5]), 0), "n_samples=0"),
    ],
)
def test_what_makes_no_sense_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_arrays_that_do_not_fit_their_model_are_refused():
    parts = dict(vars(model_of([0.5, 0.2])))
    for change, says in (
        ({"means": jnp.ones(3)}, r"means has shape \(3,\) but there are 2 features"),
        ({"factor": jnp.ones((2, 1))}, r"factor has shape \(2, 1\); give"),
        ({"factor": jnp.ones((3, 1)), "diagonal": jnp.ones(2)}, r"factor has shape \(3, 1\); give"),
    ):
        with pytest.raises(ValueError, match=says):
            synthetic.BenchModel(**parts | change)
