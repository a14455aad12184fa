"""Every live feature has examples from all rows, in context where documents are known, and a histogram of its codes."""

import jax.numpy as jnp
import numpy as np
import pytest
from audited import LAM, planted, rows, top_three, truth_sae

import jaxdict as jd
from jaxdict.auditing import streaming
from jaxdict.auditing.passages import passages
from jaxdict.auditing.strongest import EXAMPLES
from jaxdict.files.rows import Rows
from jaxdict.reporting.vocabulary import CONTEXT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def seen():
    """A TopK audit of 400 rows of 20 documents, a label a row; only every fourth row's features are kept for pairs."""
    X = rows(0).astype(np.float32)
    labels, groups = np.array([f" w{n}" for n in range(400)]), np.arange(400) // 20
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "TABLE_ROWS", 100)
        found = jd.audit(top_three(), X, labels=labels, groups=groups, exact_samples=60, descent_steps=0)
    return X, found.document


def test_every_live_feature_has_its_strongest_rows_of_all(seen):
    X, document = seen
    f = np.asarray(top_three().encode(X))
    for k, row in enumerate(document["features"]):
        order = np.argsort(-f[:, k], kind="stable")[:EXAMPLES]
        assert row["rows"] == order.tolist()
        np.testing.assert_allclose(row["codes"], f[order, k], rtol=1e-6)
        assert row["label"] == ", ".join(f" w{n}" for n in order[:5])
        assert sum(row["histogram"]["counts"]) == (f[:, k] > 0).sum()
        first = (f[:, k] > row["histogram"]["from"] / np.sqrt(2)).sum()
        assert row["histogram"]["counts"][0] == first > 0


def test_passages_hold_every_example_with_its_neighbours_in_its_document(seen):
    _, document = seen
    text = {run["row"] + n: word for run in document["passages"] for n, word in enumerate(run["texts"])}
    assert all(word == f" w{n}" for n, word in text.items())
    before, after = CONTEXT
    for row in document["features"]:
        for n in row["rows"]:
            first = n - n % 20
            assert set(range(max(first, n - before), min(first + 20, n + after + 1))) <= set(text)
    assert all(run["row"] // 20 == (run["row"] + len(run["texts"]) - 1) // 20 for run in document["passages"])


@pytest.mark.slow
def test_a_dead_feature_has_none():
    X, atoms, _, _ = planted(200)
    sae = truth_sae(atoms)
    deaf = jd.sae.SAE(sae.W_enc, sae.b_enc.at[3].set(-100.0), sae.W_dec, sae.b_dec)
    row = jd.audit(deaf, X, LAM, exact_samples=50, descent_steps=0).document["features"][3]
    assert (row["rows"], row["codes"], row["histogram"], row["label"]) == ([], [], None, None)


def test_documents_that_the_files_know_give_contexts_and_their_absence_none():
    X = rows(0, 40).astype(np.float32)
    labels = np.array([f"w{n}" for n in range(40)])
    stored = Rows(lambda: X.reshape(4, 10, 16), (4, 10, 16), X.dtype, width=16)
    options = {"labels": labels, "exact_samples": 20, "descent_steps": 0}
    told = jd.audit(top_three(), stored, **options).document["passages"]
    assert {run["row"] // 10 for run in told} == {0, 1, 2, 3}
    assert all(run["row"] % 10 + len(run["texts"]) <= 10 for run in told)
    assert max(len(run["texts"]) for run in told) > 1
    bare = jd.audit(top_three(), X, **options).document["passages"]
    assert all(len(run["texts"]) == 1 for run in bare)
    assert jd.audit(top_three(), X, **options | {"labels": None}).document["passages"] is None


def test_passages_do_not_cross_documents_and_hold_a_row_once():
    rng = np.random.default_rng(0)
    documents = np.repeat(rng.permutation(30), rng.integers(1, 40, 30))
    labels = np.arange(len(documents)).astype(str)
    named = rng.integers(0, len(documents), 60)
    found = passages(named, labels, documents)
    held = np.concatenate([run["row"] + np.arange(len(run["texts"])) for run in found])
    assert len(np.unique(held)) == len(held)
    assert [word for run in found for word in run["texts"]] == labels[held].tolist()
    wanted = {m for n in named for m in range(max(0, n - CONTEXT[0]), min(len(documents), n + CONTEXT[1] + 1))
              if documents[m] == documents[n]}  # fmt: skip
    assert set(held.tolist()) == wanted
    for run in found:
        assert len(set(documents[run["row"] : run["row"] + len(run["texts"])])) == 1


def test_a_signed_feature_is_strongest_where_its_code_is_largest_either_way():
    X = np.random.default_rng(0).normal(size=(60, 16)).astype(np.float32)
    eye = jnp.eye(16)
    sae = jd.sae.SAE(eye, jnp.zeros(16), eye, jnp.zeros(16), activation=jd.sae.Activation("abstopk", k=4))
    row = jd.audit(sae, X, exact_samples=20, descent_steps=0).document["features"][2]
    f = np.asarray(sae.encode(X))[:, 2]
    assert row["rows"] == np.argsort(-np.abs(f), kind="stable")[: len(row["rows"])].tolist()
    assert min(row["codes"]) < 0 < max(row["codes"])
