"""`benchmarks/accelerator.py` at tiny sizes: its own gap, the share of unsolved rows, and a table that says what was left out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scripts import FOLDER, load

import jaxdict as jd


@pytest.fixture(scope="module")
def accelerator():
    return load(FOLDER / "accelerator.py")


@pytest.mark.slow
def test_the_table_has_what_was_measured_and_what_was_not(accelerator, tmp_path, monkeypatch):
    monkeypatch.setattr(accelerator, "QUICK", ((24, 8, 40, 2, 0.3, 0.3),))
    monkeypatch.setattr(accelerator, "certify_lines", lambda sizes: iter(()))
    with jax.enable_x64(False):
        accelerator.main(["--quick", "--seconds", "0", "--out", str(tmp_path / "table.md")])
        assert "encode" not in (tmp_path / "table.md").read_text()
        monkeypatch.setattr(accelerator, "step_lines", lambda quick: iter(()))
        monkeypatch.setattr(accelerator, "batch_lines", lambda quick: iter(()))
        accelerator.main(["--quick", "--out", str(tmp_path / "table.md")])
    told = (tmp_path / "table.md").read_text()
    rows = [line.split("|") for line in told.splitlines() if "encode" in line]
    assert len(rows) == 2
    for row in rows:
        assert 0 <= float(row[6]) <= 2e-6
        assert row[7].strip() == "0.00%"


@pytest.mark.slow
def test_gaps_and_unsolved_rows_are_told(accelerator):
    X, D = accelerator.planted(24, 8, 40, 2, 0.3)
    np.testing.assert_allclose(jnp.linalg.norm(D, axis=1), 1, rtol=1e-5)
    move = jnp.linalg.norm(accelerator.moved(D) - D, axis=1)  # what lies along the atom is taken away again
    assert 0.005 < float(jnp.min(move)) <= float(jnp.max(move)) < 0.0101
    done = accelerator.encoded(X, D, None, 0.3)
    none = done.codes._replace(values=0 * done.codes.values)
    assert accelerator.worst_gap(done.codes, X, D, 0.3) < 2e-6
    assert accelerator.worst_gap(none, X, D, 0.3) > 1e-2
    assert accelerator.unsolved(done, X, D, 0.3) == 0
    assert accelerator.unsolved(jd.Encoding(done.codes, done.gap + 1, done.status, done.steps), X, D, 0.3) == 1
