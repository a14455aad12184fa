"""Results come back as they were saved; a killed or broken write never leaves a half result."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import jaxdict as jd
from jaxdict import results, storage


def point(seed=0):
    rng = np.random.default_rng(seed)
    codes = np.maximum(rng.normal(size=(7, 4)), 0)
    problem = jd.Problem(lam=0.1, signed=True, gauge="penalised", metric=np.array([1.0, 2, 3]), weights=np.ones(7))
    return problem, jd.Dictionary(jnp.asarray(rng.normal(size=(4, 3))), jnp.arange(3.0)), jnp.asarray(codes)


def test_round_trip(tmp_path):
    problem, dictionary, codes = point()
    history = {"objective": np.array([3.0, 2.0, 1.0])}
    results.save_solution(
        tmp_path / "out", problem, dictionary, codes, history=history, rows=np.arange(7), meta={"worst": np.nan}
    )
    saved = results.load_solution(tmp_path / "out")
    assert np.array_equal(saved.dictionary.atoms, dictionary.atoms)
    assert np.array_equal(saved.dictionary.offset, dictionary.offset)
    assert np.array_equal(jd.dense_codes(saved.codes, 4), codes)
    assert (saved.problem.signed, saved.problem.offset, saved.problem.gauge) == (True, True, "penalised")
    assert float(saved.problem.lam) == 0.1
    assert np.array_equal(saved.problem.metric, [1, 2, 3])
    assert np.array_equal(saved.history["objective"], [3, 2, 1])
    assert np.array_equal(saved.rows, np.arange(7))
    document = json.loads((tmp_path / "out" / results.JSON_NAME).read_text())
    assert document["worst"] is None  # NaN is not JSON
    assert document == saved.meta


def test_sparse_codes_and_absent_parts_round_trip(tmp_path):
    codes = jd.SparseCodes(jnp.array([[1, 0]]), jnp.array([[2.0, 0.0]]))
    results.save_solution(tmp_path, jd.Problem(lam=0.1, offset=False), jd.Dictionary(jnp.eye(2)), codes)
    saved = results.load_solution(tmp_path)
    assert saved.dictionary.offset is None
    assert saved.rows is None
    assert saved.problem.metric is None
    assert np.array_equal(saved.codes.indices, [[1, 0]])


def test_a_failed_write_leaves_the_old_result(tmp_path, monkeypatch):
    problem, dictionary, codes = point()
    results.save_solution(tmp_path, problem, dictionary, codes, meta={"run": 1})

    def full_disk(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "replace", full_disk)
    with pytest.raises(OSError, match=r"solution.safetensors: cannot be written: No space left on device"):
        results.save_solution(tmp_path, problem, dictionary, 2 * codes, meta={"run": 2})
    assert results.load_solution(tmp_path).meta["run"] == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == [results.JSON_NAME, results.ARRAYS_NAME]


def test_folders_without_a_result(tmp_path):
    with pytest.raises(OSError, match="no such file; give a folder"):
        results.load_solution(tmp_path)
    results.save_solution(tmp_path, *point())
    path = tmp_path / results.ARRAYS_NAME
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(ValueError, match=r"solution.safetensors: .*truncated"):
        results.load_solution(tmp_path)
    path.write_bytes(b"junk")
    with pytest.raises(ValueError, match="not a safetensors file"):
        results.load_solution(tmp_path)
    path.write_bytes(whole.replace(results.FORMAT.encode(), b"jaxdict-solution-9"))
    with pytest.raises(ValueError, match="not a result of this version"):
        results.load_solution(tmp_path)


def test_fingerprint_tells_data_apart_not_precisions():
    X = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert results.fingerprint(X) == results.fingerprint(X.astype(np.float16))
    assert results.fingerprint(X) != results.fingerprint(X[::-1])
