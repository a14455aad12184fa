"""What an audit says of nested pairs under a Matryoshka's loss (T22) and under an annealed penalty (T23), and where it cannot."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar

import jaxdict as jd
from jaxdict.auditing.code_tables import CodeTable
from jaxdict.auditing.gaps import Sample
from jaxdict.auditing.kinds import by_supports, has_l1_penalty, has_power_penalty, has_prefixes
from jaxdict.auditing.nested import matryoshka_loss, nested_facts, nested_pairs, penalty_facts, prefix_facts
from jaxdict.sae.activations import Activation
from jaxdict.sae.models import SAE, Metadata

ROWS, FEATURES, D_IN = 400, 6, 5
PARENT, CHILD, SISTER = 1, 3, 2
PREFIXES, WEIGHTS = (3, 5, 6), (1.0, 2.0, 1.0)


@pytest.fixture(scope="module")
def point():
    """Features 3 and 2 on only where feature 1 is; the others by chance: (codes, unit atoms, rows)."""
    rng = np.random.default_rng(0)
    codes = np.where(rng.random((ROWS, FEATURES)) < 0.25, rng.uniform(0.5, 2, (ROWS, FEATURES)), 0)
    codes[:, PARENT] = np.where(rng.random(ROWS) < 0.4, rng.uniform(1, 3, ROWS), 0)
    codes[codes[:, PARENT] == 0, CHILD] = 0
    codes[codes[:, PARENT] == 0, SISTER] = 0
    units = rng.normal(size=(FEATURES, D_IN))
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    return codes, units, codes @ units + 0.2 * rng.normal(size=(ROWS, D_IN))


def sae_of(units, kind="jumprelu", **about):
    threshold = np.ones(FEATURES, np.float32) if kind == "jumprelu" else None
    parts = units.T, np.zeros(FEATURES), units, np.zeros(D_IN), threshold
    return SAE(*parts, activation=Activation(kind), metadata=Metadata(**about))


def sampled(point):
    codes, units, X = point
    sample = Sample(np.arange(ROWS), jnp.asarray(X), jd.sparse_codes(jnp.asarray(codes)), None)
    return jd.Dictionary(jnp.asarray(units), jnp.zeros(D_IN)), CodeTable.from_dense(codes, np.arange(ROWS)), sample


def matryoshka(codes, units, X, prefixes=PREFIXES, weights=WEIGHTS):
    """The loss, written out."""
    errors = [np.mean(np.sum((X - codes[:, :p] @ units[:p]) ** 2, axis=1)) / 2 for p in prefixes]
    return float(np.dot(weights, errors))


def test_a_matryoshkas_pairs_are_those_of_its_loss_along_the_path(point):
    codes, units, X = point
    dictionary, table, sample = sampled(point)
    sae = sae_of(units, prefixes=PREFIXES, prefix_weights=WEIGHTS)
    facts = prefix_facts(sae, dictionary, nested_pairs(dictionary, table), sample, 10)
    loss = matryoshka(codes, units, X)
    assert facts["loss"] == pytest.approx(loss, rel=1e-12)
    assert matryoshka_loss(dictionary, sample, Metadata(prefixes=PREFIXES)) == pytest.approx(
        matryoshka(codes, units, X, weights=(1, 1, 1)), rel=1e-12
    )
    found = {row["child"]: row for row in facts["pairs"]}
    assert set(found) == {CHILD, SISTER}
    row = found[CHILD]

    def along(a):
        moved, atoms = codes.copy(), units.copy()
        moved[:, PARENT] += a * codes[:, CHILD]
        atoms[CHILD] -= a * units[PARENT]
        return matryoshka(moved, atoms, X), atoms[CHILD] @ units[PARENT] / np.linalg.norm(atoms[CHILD])

    lowest = -np.min(codes[codes[:, CHILD] > 0, PARENT] / codes[codes[:, CHILD] > 0, CHILD])
    best = minimize_scalar(lambda a: along(a)[0], bounds=(lowest, 5), method="bounded", options={"xatol": 1e-10})
    assert row["parting"] == 1
    assert row["wanted"] == pytest.approx(along(best.x)[1], abs=1e-5)  # tables hold float32
    assert row["gain_share"] == pytest.approx((loss - best.fun) / loss, abs=1e-8)
    assert row["absorption_share"] == pytest.approx((along(lowest)[0] - best.fun) / loss, rel=1e-5)
    assert row["slope"] == pytest.approx((along(1e-4)[0] - along(-1e-4)[0]) / 2e-4, abs=1e-7)
    pulls = WEIGHTS[0] * codes[:, CHILD] * ((X - codes[:, :3] @ units[:3]) @ units[PARENT])
    assert row["slope_error"] == pytest.approx(np.std(pulls, ddof=1) / np.sqrt(ROWS), rel=1e-9)
    assert (
        f"1 of 3 prefixes holds the parent without it, so the loss says what their cosine should be: {row['wanted']:.2f}"
        in row["sentence"]
    )
    assert "would cost" in row["sentence"]
    assert "2 nested pairs 1 lie across groups" in facts["sentence"]


def test_a_pair_in_one_group_stays_undetermined_and_a_child_in_an_earlier_one_is_not_spoken_of(point):
    _, units, _ = point
    dictionary, table, sample = sampled(point)
    facts = prefix_facts(sae_of(units, prefixes=PREFIXES), dictionary, nested_pairs(dictionary, table), sample, 10)
    sister = next(row for row in facts["pairs"] if row["child"] == SISTER)
    assert (sister["parting"], sister["wanted"], sister["gain_share"]) == (0, None, None)
    assert "no prefix parts them" in sister["sentence"]
    codes, units, X = (part[..., ::-1] if k == 0 else part[::-1] if k == 1 else part for k, part in enumerate(point))
    dictionary, table, sample = sampled((codes, units, X))  # the children now come first
    facts = prefix_facts(sae_of(units, prefixes=(4, 6)), dictionary, nested_pairs(dictionary, table), sample, 10)
    assert facts["pairs"] == []
    assert "No feature is on only where another" in facts["sentence"]


def test_a_matryoshka_of_unknown_sizes_says_so_in_one_sentence(point):
    _, units, _ = point
    dictionary, table, sample = sampled(point)
    facts = nested_facts(
        sae_of(units, architecture="jumprelu", trained_as="matryoshka_batchtopk"), dictionary, table, sample, False, 10
    )
    assert (facts.undetermined, facts.penalty) == (None, None)
    assert facts.prefixes["pairs"] == []
    assert "do not say how large its groups are" in facts.prefixes["sentence"]


def forced(codes, units, power, root):
    """The cosine at which the penalty is stationary along the path, by its definition."""

    def penalty(a, G):
        atoms = units.copy()
        across = units[CHILD] - (units[CHILD] @ units[PARENT]) * units[PARENT]
        atoms[CHILD] = G * units[PARENT] + np.sqrt(1 - G**2) * across / np.linalg.norm(across)
        moved = codes.copy()
        moved[:, PARENT] += a * codes[:, CHILD]
        atoms[CHILD] -= a * units[PARENT]
        sizes = np.where(moved > 0, moved, 0) * np.linalg.norm(atoms, axis=1)
        sums = np.sum(np.where(sizes > 0, sizes, 1) ** power * (sizes > 0), axis=1)
        return np.mean(np.where(sums > 0, sums, 1) ** (1 / power if root else 1) * (sums > 0))

    slope = lambda G: (penalty(1e-5, G) - penalty(-1e-5, G)) / 2e-5  # noqa: E731
    low, high = -0.99, 0.99
    for _ in range(60):  # more of the child's cosine: less to gain from drawing the parent in
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return low


@pytest.mark.parametrize(("penalty", "power"), [("power", 0.5), ("power", 0.2), ("norm", 0.5)])
def test_the_cosine_that_a_penalty_forces_is_where_it_is_stationary(point, penalty, power):
    codes, units, _ = point
    dictionary, table, _ = sampled(point)
    sae = sae_of(units, "relu", architecture="AutoEncoder", trained_as="PAnnealTrainer", penalty=penalty, power=power)
    facts = penalty_facts(sae, dictionary, table, nested_pairs(dictionary, table), 10)
    row = next(row for row in facts["pairs"] if row["child"] == CHILD)
    assert row["forced"] == pytest.approx(forced(codes, units, power, penalty == "norm"), abs=1e-4)
    assert row["cosine"] == pytest.approx(units[PARENT] @ units[CHILD], abs=1e-6)
    assert f"stays at cosine {row['forced']:.2f} (T23); its decoder rows have {row['cosine']:.2f}" in row["sentence"]
    assert "such pairs were found" in facts["sentence"]


@pytest.mark.parametrize(
    ("about", "says"),
    [
        ({"penalty": "power"}, "do not say the power p"),
        ({"power": 0.3}, "do not say whether its penalty is a sum of powers"),
        ({"penalty": "norm", "power": 0.0}, "ended at p = 0, where no norm is a penalty"),
    ],
)
def test_what_is_missing_of_a_penalty_is_named(point, about, says):
    _, units, _ = point
    dictionary, table, _ = sampled(point)
    facts = penalty_facts(sae_of(units, "relu", trained_as="PAnnealTrainer", **about), dictionary, table, [], 10)
    assert facts["pairs"] == []
    assert says in facts["sentence"]


def test_which_kind_an_sae_is(point):
    _, units, _ = point
    asked = by_supports, has_l1_penalty, has_prefixes, has_power_penalty
    kinds = {
        "batchtopk": sae_of(units, architecture="jumprelu", trained_as="batchtopk"),
        "l1": sae_of(units, "relu"),
        "matryoshka": sae_of(units, architecture="jumprelu", trained_as="matryoshka_batchtopk"),
        "widths": sae_of(units, prefixes=(2, 6)),
        "annealed": sae_of(units, "relu", architecture="AutoEncoder", trained_as="PAnnealTrainer"),
        "half norm": sae_of(units, "relu", penalty="norm", power=0.5),
        "gated": sae_of(units, trained_as="GatedAnnealTrainer"),
    }
    assert {name: tuple(one(sae) for one in asked) for name, sae in kinds.items()} == {
        "batchtopk": (True, False, False, False),
        "l1": (False, True, False, False),
        "matryoshka": (False, False, True, False),
        "widths": (False, False, True, False),
        "annealed": (False, False, False, True),
        "half norm": (False, False, False, True),
        "gated": (False, False, False, False),
    }
    named = replace(kinds["annealed"], metadata=replace(kinds["annealed"].metadata, lam=0.1))
    assert has_l1_penalty(named)  # who gives a lam is taken at their word


def test_codes_of_both_signs_are_not_looked_at(point):
    codes, units, X = point
    dictionary, table, sample = sampled((codes * np.where(np.arange(FEATURES) == 4, -1, 1), units, X))
    facts = nested_facts(sae_of(units, prefixes=PREFIXES), dictionary, table, sample, True, 10)
    assert facts.prefixes["pairs"] == []
