"""`benchmarks/streams.py`: what it makes of activations and documents, and how it judges what learners had at a time."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from scripts import FOLDER, load

import jaxdict as jd


@pytest.fixture
def streams():
    return load(FOLDER / "streams.py")


def told_of(streams, tmp_path, monkeypatch, *learners):
    """The table and its facts, of some learners on a few rows."""
    luck = np.random.default_rng(0)
    np.save(tmp_path / "acts.npy", (luck.normal(size=(900, 4)) ** 3 + 1).astype(np.float16))
    np.savez(tmp_path / "meta.npz", doc=np.arange(900) // 30)
    monkeypatch.setattr(streams, "BATCH", 64)

    def here(call, **_):  # instead of a process of its own
        streams.main(call[2:])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(streams.subprocess, "run", here)
    settings = ["--atoms", "5", "--lam", "0.3", "--seconds", "0.5", "--held-documents", "4"]
    settings += [part for name in learners for part in ("--only", name)]
    files = [str(tmp_path / "acts.npy"), str(tmp_path / "meta.npz")]
    streams.main([*files, *settings, "--folder", str(tmp_path / "out"), "--out", str(tmp_path / "streams.md")])
    return (tmp_path / "streams.md").read_text(), json.loads((tmp_path / "streams.json").read_text())


@pytest.mark.filterwarnings("ignore:Objective did not converge")
def test_one_learner_from_files_to_the_table(streams, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    name = "scikit-learn MiniBatch"
    told, kept = told_of(streams, tmp_path, monkeypatch, name)
    training = np.load(tmp_path / "out" / "training.npy")
    assert training.shape == (780, 4)
    np.testing.assert_allclose(training.mean(axis=0), 0, atol=1e-5)
    assert np.mean(np.sum(training**2, axis=1)) == pytest.approx(1, rel=1e-4)
    rows = kept["rows"][name]
    assert kept["facts"]["held"] == 120
    assert [row["cpu"] for row in rows] == sorted(row["cpu"] for row in rows)
    assert all(0 < row["mean"] < 0.5 and row["error"] > 0 for row in rows)
    assert f"{rows[-1]['mean']:.5f}" in told
    assert told.count("| - |") > 0


@pytest.mark.slow
def test_exact_passes_go_on_from_the_last_dictionary(streams, tmp_path, monkeypatch):
    told, kept = told_of(streams, tmp_path, monkeypatch, "jaxdict fit_stream", streams.PASSES)
    before, after = (kept["rows"][name][-1]["mean"] for name in ("jaxdict fit_stream", streams.PASSES))
    assert kept["facts"]["gain"][0] == pytest.approx(before - after, abs=1e-12)
    assert "Exact passes from fit_stream's last dictionary" in told
    assert "3 exact passes" in told


def test_judged_as_any_dictionary_is(streams):
    luck = np.random.default_rng(1)
    rows, atoms = luck.normal(size=(60, 4)).astype(np.float32), 3 * luck.normal(size=(6, 4))
    atoms[2] = 0  # dead
    values, active = streams.judged(atoms, np.full(4, 0.1), rows, np.arange(60) // 5, 0.3)
    live = np.delete(atoms, 2, axis=0)
    dictionary = jd.Dictionary(live / np.linalg.norm(live, axis=1)[:, None], np.full(4, 0.1))
    codes = jd.encode(jd.Problem(lam=0.3), dictionary, rows.astype(float), tol=1e-10).codes
    wanted = jd.objective(jd.Problem(lam=0.3), dictionary, codes, rows.astype(float))
    assert values.mean() == pytest.approx(float(wanted), rel=1e-4)
    assert active == pytest.approx(float(np.mean(np.sum(np.asarray(codes) > 0, axis=1))), rel=0.05)
    of_row = np.repeat(np.arange(12), 5)
    assert streams.mean_and_error(np.ones(60), of_row) == (1.0, 0.0)
    by_document = luck.normal(size=12)[of_row]
    assert streams.mean_and_error(by_document, of_row)[1] > streams.mean_and_error(by_document, np.arange(60))[1]


def test_files_that_do_not_fit_are_refused(streams, tmp_path):
    np.save(tmp_path / "acts.npy", np.ones((6, 2)))
    np.save(tmp_path / "few.npy", np.zeros(3))
    np.save(tmp_path / "one.npy", np.zeros(6))
    for name, told in (("few", "shape"), ("one", "cannot be held out")):
        with pytest.raises(SystemExit, match=told):
            streams.main([str(tmp_path / "acts.npy"), str(tmp_path / f"{name}.npy"), "--folder", str(tmp_path / "out")])
