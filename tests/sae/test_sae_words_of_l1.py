"""Statements of the L1 penalty (C1, T5, T6, T16) stand in an audit only where the penalty is L1, or the user gave lam."""

import re
from pathlib import Path

import numpy as np
import pytest
from sae_cases import CASES, D
from sae_writers import write_folder

import jaxdict as jd
from jaxdict.auditing.kinds import has_l1_penalty
from jaxdict.sae import load

REAL = Path(__file__).parent / "data" / "dl_matryoshka"
OF_L1 = re.compile(r"\b(C1|T5|T6|T7|T16)\b|penalised loss|problem P sees|cannot both")
ROWS = np.random.default_rng(3).normal(size=(160, D)).astype(np.float32)
# One of each kind; the others of a kind are the same programs over again.


def texts(value, at=""):
    """Every text of a document with its place."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from texts(part, f"{at}.{name}")
    elif isinstance(value, list):
        for part in value:
            yield from texts(part, at)
    elif isinstance(value, str):
        yield at, value


def check(sae, document):
    wanted = has_l1_penalty(sae) and document["lam"]["value"] is not None
    of_l1 = ("gaps", "pairs", "new_atom", "barycentre")
    if wanted:
        assert all(document[name] is not None for name in of_l1 if name != "pairs" or sae.activation.kind == "relu")
        return
    assert all(document[name] is None for name in of_l1)
    assert document["cards"] == {"pairs": [], "features": []}
    for row in document["features"]:
        assert all(row[name] is None for name in ("stationarity", "stationarity_exact", "residual", "lam"))
    said = [(at, text) for at, text in texts(document) if OF_L1.search(text)]
    assert not said, said
    # What needs no lam is always there.
    assert document["split"]["parts"][0]["mean"] is not None
    assert any(row["decoder_gain"] is not None for row in document["features"])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_statements_of_l1_stand_where_the_penalty_is(name, tmp_path):
    case = CASES[name]
    write_folder(tmp_path, case.files)
    at = tmp_path / "embedding" / "width_4k" if "embedding" in name else tmp_path
    sae = load(at, **(case.options or {}))
    check(sae, jd.audit(sae, ROWS, exact_samples=100, descent_steps=0).document)


@pytest.mark.slow
def test_a_real_matryoshka_has_its_prefixes_and_no_word_of_l1():
    sae = load(REAL)
    x = np.load(REAL / "expected.npz")["x"]
    document = jd.audit(sae, np.concatenate([x, 0.9 * x, 1.1 * x]), exact_samples=64, descent_steps=0).document
    check(sae, document)
    assert document["prefix_pairs"]["prefixes"] == [64, 192, 512]


@pytest.mark.slow
def test_given_a_lam_problem_p_speaks_of_any(tmp_path):
    sae = load(write_folder(tmp_path, CASES["topk"].files))
    document = jd.audit(sae, ROWS, 0.1, exact_samples=100, descent_steps=0).document
    assert document["gaps"] is not None
    assert document["pairs"] is not None
