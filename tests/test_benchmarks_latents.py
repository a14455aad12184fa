"""`benchmarks/latents.py`: measures of single latents beside those counted row by row, and what must notice a planted change."""

import itertools

import numpy as np
import pytest
import scipy.sparse
from scipy.stats import spearmanr
from scripts import FOLDER, load

latents = load(FOLDER / "latents.py")
TOKENS = np.array([",", "the", "cats", "##s", "1990", "run"])
ROWS, DOCUMENTS = 1200, 12


def part(seed):
    rng = np.random.default_rng(seed)
    token = TOKENS[rng.integers(0, len(TOKENS), ROWS)]
    documents = np.repeat(np.arange(DOCUMENTS), ROWS // DOCUMENTS)
    position = np.tile(np.arange(ROWS // DOCUMENTS), DOCUMENTS)
    return latents.Part(latents.words_of(token, position, documents, np.array(["x", "y"])[documents % 2]), documents)


FIT, FRESH = part(0), part(1)


def codes(of, seed):
    """Latents for a token (with noise below its level), for the token before, for anything; one that is never on, one all but never."""
    rng = np.random.default_rng(seed)
    noise = rng.uniform(0, 0.5, ROWS) * (rng.random(ROWS) < 0.3)
    columns = [
        (of.words.token == "the") * rng.uniform(1, 2, ROWS) + noise,
        (of.words.before == ",") * rng.uniform(1, 2, ROWS) * (rng.random(ROWS) < 0.8),
        rng.uniform(0, 1, ROWS) * (rng.random(ROWS) < 0.2),
        np.zeros(ROWS),
        np.arange(ROWS) < 3,
    ]
    return np.stack(columns, axis=1)


@pytest.fixture(scope="module")
def measured():
    judge = latents.Judge(FIT, FRESH)
    of_fit, of_fresh = codes(FIT, 2), codes(FRESH, 3)
    return judge, of_fit, of_fresh, judge(*map(scipy.sparse.csc_matrix, (of_fit, of_fresh)))


def f1(found, there):
    return 2 * np.sum(found & there) / (np.sum(found) + np.sum(there))


def test_concepts_are_those_of_the_rows(measured):
    names = measured[0].concepts.names
    assert {name for kind, name in names if kind == "token"} == set(TOKENS)
    assert {name for kind, name in names if kind == "class"} == {"number", "punctuation", "piece", "-s"}
    assert {name for kind, name in names if kind == "topic"} == {"x", "y"}
    assert ("before", "") not in names
    k = names.index(("before", ","))
    assert np.array_equal(measured[0].concepts.fresh[:, k], FRESH.words.before == ",")


def test_a_concept_of_few_rows_or_documents_is_left_out():
    few, one = FRESH.words.token.copy(), FRESH.words.token.copy()
    few[np.flatnonzero(few == "run")[latents.LEAST - 1 :]] = ","
    one[(one == "run") & (FRESH.documents >= latents.LEAST_DOCUMENTS - 1)] = ","
    for token in (few, one):
        names = latents.concepts_of(FIT, latents.Part(FRESH.words._replace(token=token), FRESH.documents)).names
        assert ("token", "run") not in names
        assert ("token", "the") in names


def test_the_best_latent_and_its_level_are_those_of_all_that_were_tried(measured):
    judge, of_fit, _, _ = measured
    chosen, levels = latents.best_latents(scipy.sparse.csc_matrix(of_fit), judge.concepts.fit)
    for k, there in enumerate(judge.concepts.fit.T):
        tried = {
            (latent, level): f1(of_fit[:, latent] >= level, there)
            for latent in range(of_fit.shape[1])
            for level in np.unique(of_fit[:, latent][of_fit[:, latent] > 0])[::7]
        }
        assert f1(of_fit[:, chosen[k]] >= levels[k], there) >= max(tried.values())
    names = judge.concepts.names
    assert chosen[names.index(("token", "the"))] == 0
    assert levels[names.index(("token", "the"))] >= 1  # above the noise
    assert chosen[names.index(("before", ","))] == 1


def test_measures_are_those_counted_row_by_row(measured):
    judge, of_fit, of_fresh, told = measured
    chosen, levels = latents.best_latents(scipy.sparse.csc_matrix(of_fit), judge.concepts.fit)
    for kind in ("token", "class", "before", "topic"):
        wanted = [
            f1(of_fresh[:, chosen[k]] >= levels[k], there)
            for k, there in enumerate(judge.concepts.fresh.T)
            if judge.concepts.names[k][0] == kind
        ]
        assert told[kind][0] == pytest.approx(np.mean(wanted), rel=1e-12)
    pure = []
    for latent in range(3):  # the others are on in too few rows
        mass = {token: of_fit[FIT.words.token == token, latent].sum() for token in TOKENS}
        own = max(mass, key=lambda token: mass[token])
        pure.append(of_fresh[FRESH.words.token == own, latent].sum() / of_fresh[:, latent].sum())
    assert told["purity"][0] == pytest.approx(np.mean(pure), rel=1e-12)
    assert np.all(told["alive"] == 3 / 5)


def test_draws_are_of_whole_documents(measured):
    """A draw's purity, counted with each document as often as it was drawn; and their spread, near that over documents."""
    judge, of_fit, of_fresh, told = measured
    times = judge.draws[7][FRESH.documents]
    own = {0: "the"}
    for latent in (1, 2):
        mass = {token: of_fit[FIT.words.token == token, latent].sum() for token in TOKENS}
        own[latent] = max(mass, key=lambda token: mass[token])
    pure = [
        np.sum(times * of_fresh[:, k] * (FRESH.words.token == token)) / np.sum(times * of_fresh[:, k])
        for k, token in own.items()
    ]
    assert told["purity"][7] == pytest.approx(np.mean(pure), rel=1e-9)
    assert judge.draws.shape == (1 + latents.DRAWS, DOCUMENTS)
    assert np.all(judge.draws.sum(axis=1) == DOCUMENTS)


def test_names_are_weighted_and_seeds_add_to_the_error():
    rng = np.random.default_rng(4)
    found = [{"purity": 0.5 + shift + 0.01 * rng.normal(size=401)} for shift in (0.0, 0.1, 0.3)]
    told = latents.told_of(found, [0.25, 0.25, 0.5], [0, 0, 1])
    plain = [one["purity"][0] for one in found]
    value = told.figure("purity")[0]
    assert value == pytest.approx(0.25 * plain[0] + 0.25 * plain[1] + 0.5 * plain[2])
    assert told.seeds["purity"] is None  # the second sparsity has one seed
    pair = latents.told_of(found[:2], [0.5, 0.5], [0, 0])
    between = abs(plain[1] - plain[0]) / 2
    assert pair.seeds["purity"] == pytest.approx(between)
    assert pair.figure("purity")[1] == pytest.approx(np.hypot(between, np.std(pair.draws["purity"][1:], ddof=1)))
    gap, spread = latents.difference(told, pair, "purity")
    assert gap == pytest.approx(value - pair.figure("purity")[0])
    assert spread == pytest.approx(np.hypot(between, np.std((told.draws["purity"] - pair.draws["purity"])[1:], ddof=1)))


def test_in_the_table_what_is_not_shown_to_be_below_the_best_is_bold():
    still = lambda value: {"purity": np.r_[value, value + 0.001 * np.random.default_rng(5).normal(size=400)]}  # noqa: E731
    luck = {"purity": np.r_[0.52, 0.52 + 0.05 * np.random.default_rng(6).normal(size=400)]}
    told = {
        name: latents.told_of([one], [1.0], [0])
        for name, one in {"low": still(0.4), "high": still(0.6), "loose": luck}.items()
    }
    assert [line.count("**") for line in latents.table(told)[2:]] == [0, 2, 2]
    counts = {"high": latents.told_of([{"alive": np.ones(401)}], [1.0], [0])}
    assert latents.table(counts)[2] == "| high | 1.000 +- 0.000 |"


def test_rank_correlations_are_scipys_and_their_chance_that_of_all_orders():
    values, others = [0.3, 0.1, 0.5, 0.2, 0.9], [3.0, 1.0, 2.0, 5.0, 4.0]
    rho, chance = latents.agreement(values, others)
    assert rho == pytest.approx(spearmanr(values, others).statistic)
    orders = [abs(spearmanr(values, order).statistic) for order in itertools.permutations(others)]
    assert chance == pytest.approx(np.mean(np.array(orders) >= abs(rho) - 1e-9))
