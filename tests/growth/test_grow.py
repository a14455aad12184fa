"""`grow` against what is planted: rays, trees, and where rows kept aside gain no more."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planted_trees import is_planted, planted_tree

import jaxdict as jd
from jaxdict.growth import GrowthProgress, match_trees
from jaxdict.growth.records import GLOBAL, INTERRUPTED, LEVEL, NOTHING, WIDTH

KEY = jax.random.key(0)
PROBLEM = jd.Problem(lam=0.1, offset=False)
SMALL = planted_tree(0)
# The same tree, other rows.
FRESH = planted_tree(0, 1200).X[600:]


@pytest.fixture(scope="module")
def grown():
    return jd.grow(PROBLEM, SMALL.X, (2, 4, 8), key=KEY, held_out=FRESH)


@pytest.mark.slow
def test_each_step_says_what_its_rows_say(grown):
    assert grown.widths == [2, 4, 8]
    assert grown.status == WIDTH
    assert grown.best == 2
    for step in grown.steps:
        here = jd.Problem(lam=0.1, offset=False)
        codes = jd.encode(here, step.dictionary, SMALL.X, tol=1e-12).codes
        value = float(jd.objective(here, step.dictionary, codes, SMALL.X))
        assert step.objective == pytest.approx(value, rel=1e-8)
        assert step.l0 == pytest.approx(float(np.mean(np.sum(np.asarray(codes) > 0, axis=1))), abs=0.02)
        codes = jd.encode(here, step.dictionary, FRESH, tol=1e-12).codes
        assert step.fresh == pytest.approx(float(jd.objective(here, step.dictionary, codes, FRESH)), rel=1e-8)
    first, second = grown.steps[:2]
    wanted = jd.population.compare(PROBLEM, first.dictionary, second.dictionary, FRESH)
    assert float(second.comparison.gain) == pytest.approx(float(wanted.gain), rel=1e-7)
    assert float(second.comparison.z) > 3
    assert grown.bound == pytest.approx(float(jd.wide.bound(SMALL.X, 0.1, offset=False).dual_value), rel=1e-9)
    assert grown.fresh_bound < grown.steps[-1].fresh
    assert grown.bound < grown.steps[-1].objective
    assert grown.steps[-1].stationarity <= 1e-3
    assert grown.rows == 600
    assert grown.fresh_rows == 600
    assert "600 rows kept aside" in grown.message()


@pytest.mark.slow
def test_new_atoms_gain_at_once_what_is_recorded(grown):
    for last, step in zip(grown.steps, grown.steps[1:], strict=False):
        assert 0 < step.birth_gain < last.objective
        assert step.objective <= last.objective - step.birth_gain + 1e-9


@pytest.mark.slow
def test_the_planted_tree_is_recovered(grown):
    assert is_planted(grown, SMALL)
    assert grown.tree.roots() == [0, 1]
    assert np.all(grown.tree.share[2:] > 0.3)
    assert np.all(grown.tree.rows[2:] > 0.7)
    assert np.all(grown.tree.depth() >= 0)
    assert np.max(grown.tree.depth()) <= 2


@pytest.mark.slow
def test_planted_trees_are_recovered_in_most_draws():
    right = 0
    for seed in range(20):
        planted = planted_tree(100 + seed)
        found = jd.grow(PROBLEM, planted.X, (2, 4, 8), key=jax.random.key(seed), held_out=0)
        right += is_planted(found, planted)
    assert right >= 18, right


@pytest.mark.slow
def test_trees_of_two_seeds_agree(grown):
    other = jd.grow(PROBLEM, SMALL.X, (2, 4, 8), key=jax.random.key(9), held_out=0)
    found = match_trees(grown.tree, other.tree, grown.dictionary.atoms, other.dictionary.atoms)
    assert np.min(found.cosines) > 0.99
    assert found.agreement.tolist() == [1.0, 1.0, 1.0]
    assert "100% of 8 matched atoms" in found.message()


def test_growth_ends_where_rows_kept_aside_gain_no_more():
    found = jd.grow(PROBLEM, SMALL.X, (2, 4, 8, 9, 12), key=KEY, held_out=FRESH, least_gain=0.01)
    width = found.dictionary.atoms.shape[0]
    assert found.status == LEVEL
    assert found.best == len(found.steps) - 2
    assert width == 8
    assert found.widths == [2, 4, 8, 9]
    assert float(found.steps[-1].comparison.gain) < 0.01 * found.steps[-2].fresh
    assert found.steps[-1].comparison is not None
    assert found.steps[found.best].stationarity <= 1e-3
    assert "the one before it is taken" in found.message()


@pytest.mark.slow
def test_growth_ends_near_the_planted_number_of_leaves():
    near = []
    for seed in range(5):
        planted = planted_tree(200 + seed, 2000, roots=4)
        widths = sorted({int(np.ceil(1.2**k)) for k in range(20)})
        found = jd.grow(PROBLEM, planted.X, widths, key=jax.random.key(seed), held_out=0.3, least_gain=0.01)
        near.append(found.dictionary.atoms.shape[0])
    assert all(abs(width - 16) <= 0.2 * 16 for width in near), near


def at_its_rays(seed):
    planted = jd.synthetic.rays(jax.random.key(seed), 80, 4, 3)
    found = jd.grow(PROBLEM, planted.X, (1, 2, 4, 8, 16), key=KEY, held_out=0, tol=1e-6)
    assert found.status == GLOBAL
    assert found.dictionary.atoms.shape[0] == 4
    assert "globally optimal" in found.message()
    assert found.steps[-1].objective == pytest.approx(found.bound, rel=1e-6)


@pytest.mark.slow
def test_rays_end_at_their_number():
    at_its_rays(0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 20))
def test_rays_of_more_draws_end_at_their_number(seed):
    at_its_rays(seed)


@pytest.mark.slow
def test_streams_grow_as_rows_in_memory_do():
    solver, X = jd.solvers.Online(batch_size=100, epochs=2), planted_tree(0, 3000).X
    found = jd.grow(PROBLEM, source=X, widths=(2, 4, 8), key=KEY, held_out=0.1, solver=solver, passes=20)
    assert found.widths == [2, 4, 8]
    assert is_planted(found, SMALL)
    assert np.isnan(found.bound)
    assert found.fresh_bound < found.steps[-1].fresh
    assert found.rows + found.fresh_rows == 3000
    assert found.training is None


@pytest.mark.slow
def test_documents_are_kept_aside_whole():
    documents = np.repeat(np.arange(60), 10)
    found = jd.grow(PROBLEM, SMALL.X, (2, 4), key=KEY, held_out=0.2, groups=documents)
    aside = np.setdiff1d(np.arange(600), found.training)
    assert len(aside) == found.fresh_rows
    assert 120 <= len(aside) <= 140
    assert not set(documents[aside]) & set(documents[found.training])
    assert int(found.steps[1].comparison.groups) == len(set(documents[aside]))


@pytest.mark.slow
def test_it_goes_on_from_a_dictionary_and_keeps_its_names():
    start = jd.Dictionary(jnp.asarray(SMALL.atoms[:4]))
    found = jd.grow(PROBLEM, SMALL.X, (8,), key=KEY, held_out=0, start=start)
    assert found.widths == [4, 8]
    assert found.steps[0].born == 0
    assert set(range(4)) <= set(found.tree.names[0].tolist())


@pytest.mark.slow
def test_a_callback_stops_it_and_keeps_what_was_reached():
    told = []

    class Enough(Exception):
        pass

    def callback(progress):
        assert isinstance(progress, GrowthProgress)
        told.append((len(progress.steps), progress.width, progress.fit is None))
        if progress.width == 4 and progress.fit is not None:
            raise Enough

    with pytest.raises(Enough) as caught:
        jd.grow(PROBLEM, SMALL.X, (2, 4, 8), key=KEY, held_out=0, callback=callback)
    reached = caught.value.solution
    assert reached.status == INTERRUPTED
    assert reached.widths == [2, 4]
    assert (1, 2, True) in told
    assert told[-1][:2] == (1, 4)


@pytest.mark.slow
def test_growth_says_when_nothing_more_helps():
    X = np.repeat(SMALL.atoms[:3], 20, axis=0) * 0.08
    X[0] *= 30
    found = jd.grow(jd.Problem(lam=0.079, offset=False), X, (1, 6), key=KEY, held_out=0, rough=1e-3)
    assert found.status in (GLOBAL, NOTHING)
    assert found.dictionary.atoms.shape[0] < 6


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"widths": None}, "widths is not given"),
        ({"widths": (4, 2)}, "ascending whole numbers"),
        ({"widths": (2.5,)}, "ascending whole numbers"),
        ({"widths": 0}, "ascending whole numbers"),
        ({"X": None}, "give one of the two"),
        ({"source": SMALL.X}, "give one of the two"),
        ({"key": None}, "key is not given"),
        ({"tol": -1.0}, "tol=-1.0"),
        ({"rough": -1.0}, "rough=-1.0"),
        ({"least_gain": -0.1}, "least_gain=-0.1"),
        ({"solver": jd.solvers.Growing(max_atoms=4)}, "solver is a Growing"),
        ({"start": jd.Dictionary(np.eye(64)[:9])}, "start has 9 atoms"),
        ({"held_out": 1.5}, "held_out=1.5"),
        ({"groups": np.zeros(3)}, "groups has shape"),
        ({"X": SMALL.X * np.nan}, "NaN"),
    ],
)
def test_what_cannot_be_is_refused_before_any_fit(options, told, monkeypatch):
    monkeypatch.setattr("jaxdict.growth.rows.fit_point", None)
    given = {"X": SMALL.X, "widths": (2, 8), "key": KEY} | options
    with pytest.raises(ValueError, match=told):
        jd.grow(PROBLEM, **given)


def test_lam_too_large_is_refused():
    with pytest.raises(ValueError, match="too large"):
        jd.grow(jd.Problem(lam=50.0), SMALL.X, (2, 8), key=KEY)


@pytest.mark.slow
def test_max_steps_and_rough_are_what_fits_are_given(monkeypatch):
    seen = []
    from jaxdict.growth import rows

    def fit(*args, **options):
        seen.append((options["tol"], options["max_steps"]))
        return real(*args, **options)

    real = rows.fit_point
    monkeypatch.setattr("jaxdict.growth.rows.fit_point", fit)
    jd.grow(PROBLEM, SMALL.X, (2, 4), key=KEY, held_out=0, tol=1e-2, rough=0.2, max_steps=50)
    assert seen == [(0.2, 50), (1e-2, 50)]


@pytest.mark.slow
def test_a_dense_direction_is_one_pair_for_ever():
    X = jd.synthetic.one_dimensional(jax.random.key(3), 60).X
    found = jd.grow(jd.Problem(lam=0.1), X, (1, 2, 4, 8), key=KEY, held_out=0, rough=1e-3, tol=1e-6)
    assert found.status == GLOBAL
    assert sorted(np.sign(np.asarray(found.dictionary.atoms)).ravel().tolist()) == [-1, 1]
    assert found.steps[-1].objective == pytest.approx(found.bound, rel=1e-6)


@pytest.mark.slow
def test_a_width_that_gains_nothing_for_sure_is_not_taken():
    """Rows of noise alone: what more atoms gain on the rows of the fit, other rows lose."""
    X = np.random.default_rng(7).normal(size=(60, 64)) / 8
    found = jd.grow(
        jd.Problem(lam=0.3), X, (2, 4, 8, 16), key=KEY, held_out=np.random.default_rng(8).normal(size=(64, 64)) / 8
    )
    assert found.status == LEVEL
    last = found.steps[-1]
    assert float(last.comparison.gain) <= 3 * float(last.comparison.standard_error)
    assert last.objective < found.steps[-2].objective
    assert found.dictionary is found.steps[found.best].dictionary
