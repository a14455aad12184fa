"""What polishing is made of: rows in three parts, encoders for another dictionary, cuts, and what is said of fresh rows."""

import jax.numpy as jnp
import numpy as np
import pytest
from audited import ACTIVE, ATOMS, D_IN, K, noisy_sae, rows, top_three, truth_sae, turned

import jaxdict as jd
from jaxdict.auditing.better_sae import descents, finding, judging
from jaxdict.auditing.better_sae.refitting import Aim, Rows, on_dictionary, refitted, tried
from jaxdict.auditing.better_sae.rows import Seen, documents_in, parts_of, working_dtype
from jaxdict.auditing.better_sae.running import cut_to, own_codes
from jaxdict.auditing.better_sae.task import Asked, task_of
from jaxdict.auditing.measuring import in_precision
from jaxdict.files import Shards
from jaxdict.files.rows import Rows as FileRows

pytestmark = pytest.mark.slow

ASKED = Asked("fitted", 1e-4, 3, None)


def seen(X):
    return Seen(None, X, np.arange(len(X)), X.dtype)


@pytest.mark.parametrize("named", [False, True])
def test_documents_stay_whole_and_parts_do_not_overlap(named):
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), rng.integers(1, 40, 60)) if named else None
    n = 5000 if groups is None else len(groups)
    parts = parts_of(n, groups)
    together = np.concatenate(parts[:3])
    assert np.array_equal(np.sort(together), np.arange(n))
    owners = [set(parts.documents[part]) for part in parts[:3]]
    assert sum(len(owner) for owner in owners) == len(owners[0] | owners[1] | owners[2])
    assert len(owners[2]) >= 8
    assert min(len(part) for part in parts[:3]) >= 0.1 * n
    assert ("documents" in parts.words()) is named


def test_too_few_rows_or_documents_are_refused():
    with pytest.raises(ValueError, match="23 rows are too few"):
        parts_of(23, None)
    with pytest.raises(ValueError, match="of 5 documents are too few"):
        parts_of(500, np.repeat(np.arange(5), 100))
    with pytest.raises(ValueError, match="few documents hold most of the 1029 rows"):
        parts_of(1029, np.repeat(np.arange(30), np.where(np.arange(30) == 7, 1000, 1)))


def test_documents_of_files_are_known_where_there_are_enough():
    read = lambda shape: FileRows(lambda: np.zeros(shape), shape, np.dtype(float), width=shape[-1])  # noqa: E731
    assert documents_in(Shards([read((30, 4, 3))])).tolist() == np.repeat(np.arange(30), 4).tolist()
    assert documents_in(Shards([read((5, 4, 3))])) is None
    assert documents_in(np.zeros((40, 3))) is None


class Watched:
    """Rows that remember which of them were looked at."""

    def __init__(self, X):
        self.X, self.shape, self.dtype, self.looked_at = X, X.shape, X.dtype, set()

    def __getitem__(self, at):
        self.looked_at |= set(np.arange(len(self.X))[at].ravel().tolist())
        return self.X[at]


@pytest.mark.parametrize("lam", [None, 0.15])
def test_rows_that_judge_have_no_part_in_the_search(lam):
    X = Watched(rows(0, 400))
    task = task_of(top_three(turned()), X, lam, np.repeat(np.arange(40), 10), ASKED)
    judged, train = set(task.parts.judged.tolist()), set(task.parts.train.tolist())
    X.looked_at.clear()
    reached = descents.descended(task)
    finding._best_sae(task, reached.dictionary, hurry=True)
    assert X.looked_at & train
    assert not X.looked_at & judged


def test_half_precision_is_read_as_float32_and_bad_rows_are_named():
    X = np.ones((6, 2), np.float16)
    assert working_dtype(X) == np.float32
    X[4, 1] = np.inf
    with pytest.raises(ValueError, match="row 4 of X holds NaN or infinity"):
        Seen(None, X, np.array([0, 4]), np.dtype("f4"))[:]


@pytest.mark.parametrize("centred", [True, False])
def test_an_encoder_on_another_dictionary(centred):
    """Pre-activations of atoms that stay are as they were wherever the offset goes; an atom that turned far gets a proximal step."""
    rng = np.random.default_rng(0)
    sae = noisy_sae().canonical()
    sae = jd.sae.SAE(
        *(jnp.asarray(part, float) for part in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)), centred=centred
    )
    atoms, offset = np.array(sae.W_dec), np.asarray(sae.b_dec) + rng.normal(size=16)
    atoms[3] = -atoms[3]
    new = on_dictionary(sae, jd.Dictionary(jnp.asarray(atoms), jnp.asarray(offset)), 0.1)
    x = rng.normal(size=(50, 16))
    others = np.arange(24) != 3
    np.testing.assert_allclose(new.encode(x)[:, others], sae.encode(x)[:, others], atol=1e-12)
    np.testing.assert_allclose(new.encode(x)[:, 3], np.maximum((x - offset) @ atoms[3] - 0.1, 0), atol=1e-12)


@pytest.mark.parametrize("kind", ["relu", "jumprelu"])
def test_a_cut_sets_how_many_features_are_on(kind):
    sae, X = noisy_sae(kind=kind).canonical(), np.random.default_rng(0).normal(size=(2000, 16))
    for wanted in (1.5, 4.0):
        on = own_codes(cut_to(sae, seen(X), wanted), seen(X), None).active.mean()
        assert wanted - 0.01 <= on <= wanted
    counted = top_three()
    assert cut_to(counted, seen(X), 1.0) is counted


@pytest.mark.parametrize("lam", [None, 0.15])
def test_own_codes_are_worth_what_numpy_says(lam):
    sae, X = noisy_sae(kind="jumprelu").canonical(), np.random.default_rng(0).normal(size=(70, 16))
    f = np.asarray(sae.encode(X))
    r = X - f @ np.asarray(sae.W_dec) - np.asarray(sae.b_dec)
    squares = np.sum(r * r, axis=1)
    found = own_codes(sae, seen(X), lam)
    np.testing.assert_allclose(found.values, squares if lam is None else 0.5 * squares + lam * f.sum(1), rtol=1e-10)
    assert np.array_equal(found.active, np.count_nonzero(f, axis=1))
    assert found.negative == 0


@pytest.mark.parametrize(("sae", "lam"), [(top_three(shift=0.3), None), (truth_sae(ATOMS), 0.15)])
def test_a_fitted_encoder_is_never_worse_on_rows_kept_aside(sae, lam):
    sae, X = in_precision(sae, float), rows(0, 600)
    parts = Rows(seen(X[:400]), seen(X[400:]))
    aim, looks = Aim(lam, float(ACTIVE)), []
    start = tried(sae, parts, aim)
    best = refitted(sae, parts, aim, tell=lambda step, most, n, best: looks.append((step, most, n, best.mean)))
    assert best.mean <= start.mean
    assert best.mean == min(mean for *_, mean in [*looks, (start.mean,)])
    if lam is None:
        assert best.mean < 0.5 * start.mean  # values that are shrunk by .3 are what an encoder can mend
    hurried = []
    refitted(sae, parts, aim, hurry=True, tell=lambda *told: hurried.append(told))
    assert hurried[-1][1] < looks[-1][1]


def test_matching_pursuit_takes_its_atoms_with_it():
    atoms = jnp.asarray(ATOMS)
    sae = jd.sae.SAE(
        atoms.T, jnp.zeros(K), atoms, jnp.zeros(D_IN), activation=jd.sae.Activation("matching_pursuit", k=ACTIVE)
    )
    other = jd.Dictionary(jnp.asarray(turned()), jnp.zeros(D_IN))
    X = rows(0, 100)
    best = refitted(on_dictionary(sae, other, None), Rows(seen(X[:50]), seen(X[50:])), Aim(None, 3.0))
    np.testing.assert_allclose(best.sae.W_enc, other.atoms.T, atol=1e-12)


def test_nearest_atoms_by_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    first, second = (jnp.asarray(rng.normal(size=(30, 8))) for _ in range(2))
    whole = judging.nearest_atoms(first, second)
    monkeypatch.setattr(judging, "COSINES", 90)
    largest = []
    real = judging.matmul
    monkeypatch.setattr(judging, "matmul", lambda a, b: largest.append(a.shape[0] * b.shape[1]) or real(a, b))
    parts = judging.nearest_atoms(first, second)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)
    assert max(largest) == 90
    unit = [np.asarray(part) / np.linalg.norm(part, axis=1, keepdims=True) for part in (first, second)]
    np.testing.assert_array_equal(parts[1], np.argmax(unit[0] @ unit[1].T, axis=1))


def test_a_gain_with_more_features_on_is_not_shown():
    X = rows(0, 400)
    few = top_three(ATOMS)
    one = jd.sae.SAE(few.W_enc, few.b_enc, few.W_dec, few.b_dec, activation=jd.sae.Activation("topk", k=1))
    task = task_of(one, X, None, None, ASKED)
    found, active = judging.as_they_run(task.parts, task.judged, task.own_judged, few, None)
    assert active == (1.0, 3.0)
    assert float(found.gain.gain) > 0
    assert not found.shown
    assert found._replace(floor=0.0).shown


def test_few_rows_of_a_wide_sae_have_their_codes_searched():
    parts = parts_of(40_000, None)
    assert len(judging.searched(parts, 512, 10.0)) == len(parts.judged)
    assert len(judging.searched(parts, 65_536, 10.0)) == 256


def test_documents_of_the_files_are_kept_whole_and_told():
    X = rows(0, 600).reshape(60, 10, D_IN)
    stored = Shards([FileRows(lambda: X, X.shape, X.dtype, width=D_IN)])
    done = jd.polish(top_three(turned()), stored, max_steps=1, encoder="tied")
    assert done.rows.documents == int(done.gain.groups) >= 8
    assert f"{done.rows.documents} documents" in done.message()
