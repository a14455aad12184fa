"""A pass over rows in chunks equals the same sums in float64 at once; it resumes, and says where data are bad."""

import socket
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from audited import noisy_sae

from jaxdict.auditing import streaming
from jaxdict.auditing.streaming import Totals, stream
from jaxdict.files import Shards
from jaxdict.sae.models import Metadata

RNG = np.random.default_rng(0)
X = RNG.normal(size=(501, 16)).astype(np.float32) + 5
CENTRE = X.mean(axis=0)


def expected(sae, X, lam):
    """The sums from dense float64 arrays."""
    sae = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), sae)
    x = X.astype(np.float64)
    f = np.asarray(sae.encode(x))
    r = np.asarray(sae.normalise(x)) - (f @ np.asarray(sae.W_dec) + np.asarray(sae.b_dec))
    error, y = x - np.asarray(sae(x)), x - CENTRE
    norms, size = np.linalg.norm(r, axis=1), np.abs(f)
    D = np.asarray(sae.W_dec)
    spread = np.sum(f**2 * (np.sum(r**2, axis=1)[:, None] - (r @ D.T) ** 2), axis=0)
    return Totals(
        len(x), np.sum(y**2), y.sum(0), np.sum(error**2), np.sum(r**2), size.sum(), (f != 0).sum(), (norms > lam).sum(),
        norms.max(), (f != 0).sum(0), size.sum(0), (f**2).sum(0), size.max(0), f.T @ r, spread, len(x), len(x), r.sum(0),
    )  # fmt: skip


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(streaming, "CHUNK_ENTRIES", 64 * 24)


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "topk"])
@pytest.mark.parametrize("normalisation", ["none", "layer_norm"])
def test_sums_in_chunks_are_the_sums(kind, normalisation, small_chunks):
    sae = noisy_sae(kind=kind, normalisation=normalisation).canonical()
    found, table, _ = stream(sae, X, CENTRE, 2.0)
    wanted = expected(sae, X, 2.0)
    for name, got, want in zip(Totals._fields, found, wanted, strict=True):
        # Products are float32, 64 rows a chunk: their rounding is 1e-7 of the largest entry; sums over chunks are float64.
        scale = np.max(np.abs(want)) + (np.abs(X).sum() if name in ("data", "residual") else 0)
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6 * scale, err_msg=name)
    assert table.by_row.shape == (501, 24)
    np.testing.assert_array_equal(table.counts, wanted.counts)


def test_a_stopped_pass_goes_on_where_it_was(tmp_path, small_chunks, monkeypatch):
    monkeypatch.setattr(streaming, "ROWS_PER_SAVE", 128)
    sae, saved = noisy_sae().canonical(), tmp_path / "pass.npz"
    whole = stream(sae, X, CENTRE, 2.0)

    class Killed(Exception):
        pass

    seen = []

    def stop(done, total):
        seen.append(done)
        if done >= 320:
            raise Killed

    with pytest.raises(Killed):
        stream(sae, X, CENTRE, 2.0, progress=stop, checkpoint=saved, name="a")
    assert saved.exists()
    resumed = []
    again = stream(sae, X, CENTRE, 2.0, progress=lambda done, total: resumed.append(done), checkpoint=saved, name="a")
    assert resumed[0] > 128  # rows that were done are not done again
    for got, want in zip(again.totals, whole.totals, strict=True):
        np.testing.assert_array_equal(got, want)
    assert (again.table.by_row != whole.table.by_row).nnz == 0
    for got, want in zip(again.strongest, whole.strongest, strict=True):
        np.testing.assert_array_equal(got, want)
    assert not saved.exists()


def test_another_audit_does_not_resume_from_it(tmp_path, small_chunks, monkeypatch):
    monkeypatch.setattr(streaming, "ROWS_PER_SAVE", 128)
    sae, saved = noisy_sae().canonical(), tmp_path / "pass.npz"

    def stop(done, total):
        if done >= 320:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream(sae, X, CENTRE, 2.0, progress=stop, checkpoint=saved, name="a")
    resumed = []
    stream(sae, X, CENTRE, 2.0, progress=lambda done, total: resumed.append(done), checkpoint=saved, name="b")
    assert resumed[0] == 64


def stopped(sae, data, saved, at=320):
    """A pass that Ctrl-C stops after so many rows."""

    def stop(done, total):
        if done >= at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream(sae, data, CENTRE, 2.0, progress=stop, checkpoint=saved, name="a")


def test_ctrl_c_keeps_every_chunk_that_is_done(tmp_path, small_chunks):
    sae, saved = noisy_sae().canonical(), tmp_path / "pass.npz"
    stopped(sae, X, saved)
    resumed = []
    again = stream(sae, X, CENTRE, 2.0, progress=lambda done, total: resumed.append(done), checkpoint=saved, name="a")
    assert resumed[0] == 320 + 64
    np.testing.assert_array_equal(again.totals.cross, stream(sae, X, CENTRE, 2.0).totals.cross)


def test_a_stopped_pass_over_documents_goes_on_as_if_it_had_not(tmp_path, small_chunks):
    sae, saved, ends = noisy_sae().canonical(), tmp_path / "pass.npz", np.array([7, 50, 90, 91, 160, 300, 380, 501])
    stops = []
    whole = stream(sae, X, CENTRE, 2.0, ends=ends, progress=lambda done, total: stops.append(done)).totals
    assert stops[:3] == [50, 91, 155]  # with a document, unless half of the chunk of 64 would be empty

    def stop(done, total):
        if done >= 200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream(sae, X, CENTRE, 2.0, ends=ends, progress=stop, checkpoint=saved, name="a")
    again = stream(sae, X, CENTRE, 2.0, ends=ends, checkpoint=saved, name="a").totals
    for got, want in zip(again, whole, strict=True):
        np.testing.assert_array_equal(got, want)


def test_rows_that_were_done_must_be_the_same(tmp_path, small_chunks):
    """One number of one row that was done is another: the pass starts afresh."""
    sae, saved = noisy_sae().canonical(), tmp_path / "pass.npz"
    stopped(sae, X, saved)
    other = X.copy()
    other[100, 3] += 1
    found = stream(sae, other, CENTRE, 2.0, checkpoint=saved, name="a").totals
    np.testing.assert_array_equal(found.cross, stream(sae, other, CENTRE, 2.0).totals.cross)


@pytest.mark.parametrize(
    "damage", [lambda raw: b"PK broken", lambda raw: raw[: len(raw) // 2], lambda raw: raw[:200] + raw[300:]]
)
def test_a_damaged_checkpoint_is_left_aside_in_words(tmp_path, small_chunks, damage):
    sae, saved = noisy_sae().canonical(), tmp_path / "pass.npz"
    stopped(sae, X, saved)
    saved.write_bytes(damage(saved.read_bytes()))
    with pytest.warns(UserWarning, match=r"pass.npz: a damaged checkpoint, left aside") as told:
        found = stream(sae, X, CENTRE, 2.0, checkpoint=saved, name="a").totals
    assert len(told) == 1
    assert float(found.rows) == len(X)


def test_an_sae_that_differs_in_what_it_was_trained_with_is_the_same_program(small_chunks):
    sae = noisy_sae().canonical()
    stream(sae, X, CENTRE, 2.0)
    before = streaming._chunk._cached._cache_size()
    stream(replace(sae, metadata=Metadata(lam=0.3, notes=("another",))), X, CENTRE, 2.0)
    assert streaming._chunk._cached._cache_size() == before


def test_shards_are_read_as_one(small_chunks):
    sae = noisy_sae().canonical()
    whole = stream(sae, X, CENTRE, 2.0).totals
    shards = stream(sae, Shards([X[:100], X[100:101], X[101:]]), CENTRE, 2.0).totals
    np.testing.assert_array_equal(whole.cross, shards.cross)


def test_rows_are_kept_evenly_where_there_are_many(small_chunks, monkeypatch):
    monkeypatch.setattr(streaming, "TABLE_ROWS", 100)
    sae = noisy_sae().canonical()
    found = stream(sae, X, CENTRE, 2.0)
    np.testing.assert_array_equal(found.table.rows, np.arange(0, 501, 6))
    dense = np.asarray(sae.encode(X))[found.table.rows]
    np.testing.assert_allclose(found.table.by_row.toarray(), dense, rtol=1e-5, atol=1e-6)
    assert float(found.totals.rows) == 501


def test_bad_rows_are_named(small_chunks):
    bad = X.copy()
    bad[300, 2] = np.inf
    with pytest.raises(ValueError, match="row 300"):
        stream(noisy_sae().canonical(), bad, CENTRE, 2.0)


def test_no_compilation_for_a_second_pass(small_chunks):
    sae = noisy_sae().canonical()
    stream(sae, X, CENTRE, 2.0)
    before = streaming._chunk._cached._cache_size()
    stream(sae, X + 1, CENTRE, 3.0)
    assert streaming._chunk._cached._cache_size() == before


@pytest.mark.slow
def test_eight_devices_give_the_same_sums(on_eight_devices):
    script = """
        import jax, numpy as np
        jax.config.update("jax_enable_x64", True)
        from test_streaming import CENTRE, X, expected
        from audited import noisy_sae
        from jaxdict.auditing.streaming import chunk_rows, stream
        assert jax.device_count() == 8 and chunk_rows(501, 24) == 504
        sae = noisy_sae().canonical()
        found, wanted = stream(sae, X, CENTRE, 2.0).totals, expected(sae, X, 2.0)
        np.testing.assert_allclose(found.cross, wanted.cross, atol=2e-6 * np.abs(wanted.cross).max())
        np.testing.assert_array_equal(found.counts, wanted.counts)
        np.testing.assert_allclose(found.spread, wanted.spread, rtol=2e-5, atol=2e-6 * wanted.spread.max())
        print("same")
    """
    assert on_eight_devices(script).strip() == "same"


TWO = """
    import sys
    import jax
    jax.distributed.initialize("localhost:" + sys.argv[2], num_processes=2, process_id=int(sys.argv[1]))
    import jaxdict as jd
    from audited import planted, truth_sae
    X, atoms, _, _ = planted(200)
    found = jd.audit(truth_sae(atoms), X, exact_samples=50, descent_steps=0)
    print(found.measures["l0"])
"""


@pytest.mark.slow
def test_every_process_of_a_cluster_may_audit():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    started = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(TWO), str(k), port],
            cwd=Path(__file__).parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for k in range(2)
    ]  # fmt: skip
    told = [process.communicate(timeout=500) for process in started]
    assert [process.returncode for process in started] == [0, 0], [err[-2000:] for _, err in told]
    assert told[0][0].split()[-1] == told[1][0].split()[-1]
