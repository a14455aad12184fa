"""Writing SAELens folders: what is written is what is read, by us and by the safetensors library."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sae_cases import CASES, SAELENS, inputs
from sae_writers import write_folder
from safetensors.numpy import load_file

import jaxdict as jd
from jaxdict.numerics import unit_rows
from jaxdict.sae import SAE, Activation, fitted_sae, load, save, tied_sae

SAVED = [name for name in CASES if name != "sparsify_groupmax"]


@pytest.mark.parametrize("name", SAVED)
def test_round_trip_is_exact(name, tmp_path):
    case = CASES[name]
    write_folder(tmp_path / "theirs", case.files)
    at = tmp_path / "theirs" / "embedding" / "width_4k" if "embedding" in name else tmp_path / "theirs"
    sae = load(at, **(case.options or {}))
    again = load(save(sae, tmp_path / "ours"))
    assert (again.activation, again.centred, again.normalisation) == (sae.activation, sae.centred, sae.normalisation)
    assert again.lam == sae.lam
    for field in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"):
        np.testing.assert_array_equal(getattr(again, field), getattr(sae, field))


@pytest.mark.parametrize("name", ["topk", "abstopk", "matching_pursuit", "sparsify", "standard"])
def test_canonical_gauge_survives_saving(name, tmp_path):
    sae, x = load(write_folder(tmp_path / "theirs", CASES[name].files)).canonical(), inputs()
    again = load(save(sae, tmp_path / "ours"))
    np.testing.assert_allclose(again(x), sae(x), atol=1e-5)
    np.testing.assert_allclose(again.canonical().encode(x), sae.encode(x), rtol=1e-5, atol=1e-5)


def test_files_are_what_saelens_writes(tmp_path):
    """Keys, dtypes and orientation of a version 6 folder of the standard architecture."""
    theirs = write_folder(tmp_path / "theirs", SAELENS["standard"].files)
    ours = save(
        load(theirs), tmp_path / "ours", metadata={"model_name": "gpt2", "hook_name": "blocks.3.hook_resid_post"}
    )
    cfg, reference = (json.loads((folder / "cfg.json").read_text()) for folder in (ours, theirs))
    assert set(cfg) == set(reference)
    assert {key: cfg[key] for key in reference if key != "metadata"} == {
        key: reference[key] for key in reference if key != "metadata"
    }
    assert cfg["metadata"]["model_name"] == "gpt2"
    assert int(cfg["metadata"]["sae_lens_version"].split(".")[0]) >= 6
    got, expected = load_file(ours / "sae_weights.safetensors"), load_file(theirs / "sae_weights.safetensors")
    assert set(got) == set(expected)
    for name, array in expected.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_array_equal(got[name], array)


def test_tied_dictionary(tmp_path):
    atoms, offset = jax.random.normal(jax.random.key(0), (7, 4)) * 3, jnp.arange(4.0)
    sae = load(save(jd.Dictionary(atoms, offset), tmp_path / "sae", lam=0.25))
    np.testing.assert_allclose(sae.W_dec, unit_rows(atoms), rtol=1e-6)
    np.testing.assert_array_equal(sae.W_enc, sae.W_dec.T)
    np.testing.assert_array_equal(sae.b_enc, -0.25)
    np.testing.assert_array_equal(sae.b_dec, offset)
    assert (sae.lam, sae.centred) == (0.25, True)
    assert (
        json.loads((tmp_path / "sae" / "cfg.json").read_text())["metadata"]["training_architecture_details"][
            "l1_coefficient"
        ]
        == 0.5
    )


def planted(key=0, n=600, d=10, k=15):
    """Sparse non-negative codes on random atoms of norm 2, with noise: no linear encoder is exact."""
    keys = jax.random.split(jax.random.key(key), 4)
    atoms = 2 * unit_rows(jax.random.normal(keys[0], (k, d)))
    codes = jax.random.exponential(keys[1], (n, k)) * jax.random.bernoulli(keys[2], 0.15, (n, k))
    X = codes @ atoms + 1.5 + 0.05 * jax.random.normal(keys[3], (n, d))
    return jd.Dictionary(atoms, jnp.full(d, 1.5)), X, codes


@pytest.mark.slow
def test_fitted_encoder_beats_the_tied_one(tmp_path):
    dictionary, X, codes = planted()
    unit = codes * 2  # in the canonical gauge, where atoms have norm one
    tied = tied_sae(dictionary, 0.05)
    fitted = load(save(dictionary, tmp_path / "sae", lam=0.05, encoder="fitted", X=X, codes=codes))
    error = lambda sae: float(jnp.mean(jnp.sum((sae.encode(X) - unit) ** 2, axis=1)))  # noqa: E731
    assert error(fitted) < 0.35 * error(tied)
    np.testing.assert_array_equal(fitted.W_dec, tied.W_dec.astype(fitted.W_dec.dtype))


def test_fitting_never_raises_its_loss_and_reaches_the_convex_minimum():
    dictionary, X, codes = planted()
    unit = codes * 2

    def loss(sae):
        p = (X - sae.b_dec) @ sae.W_enc + sae.b_enc
        return float(jnp.sum(jnp.where(unit > 0, p - unit, jnp.maximum(p, 0)) ** 2))

    budgets = (0, 1, 3, 10, 100, 1000, 4000)
    losses = [loss(fitted_sae(dictionary, 0.05, X, codes, ridge=1e-9, steps=steps)) for steps in budgets]
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in itertools.pairwise(losses))
    assert losses[-1] > 0.999 * losses[-2]


def test_fitted_encoder_recovers_a_relu_encoder_that_exists():
    """Codes made by a relu encoder are fitted by it: the loss has minimum zero there."""
    dictionary, X, _ = planted()
    W = jax.random.normal(jax.random.key(7), (10, 15)) / 3
    codes = jax.nn.relu((X - 1.5) @ W - 0.2)
    fitted = fitted_sae(dictionary, 0.05, X, codes, ridge=1e-12, steps=3000)
    np.testing.assert_allclose(fitted.encode(X), codes * 2, atol=1e-2)


def test_sparse_codes_fit_the_same():
    dictionary, X, codes = planted()
    dense, sparse = (fitted_sae(dictionary, 0.05, X, z, steps=5) for z in (codes, jd.sparse_codes(codes)))
    np.testing.assert_allclose(dense.W_enc, sparse.W_enc, rtol=1e-9)


def test_new_folder_is_whole_or_absent_and_an_old_one_is_replaced_file_by_file(tmp_path, monkeypatch):
    sae = load(write_folder(tmp_path / "theirs", SAELENS["standard"].files))

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("jaxdict.sae.saving.replace_text", fail)
    with pytest.raises(OSError, match="disk full"):
        save(sae, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
    assert [file.name for file in tmp_path.iterdir()] == ["theirs"]
    monkeypatch.undo()
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "notes.txt").write_text("kept")
    save(sae, tmp_path / "ours")
    save(sae.canonical(), tmp_path / "ours")
    assert sorted(file.name for file in (tmp_path / "ours").iterdir()) == [
        "cfg.json",
        "notes.txt",
        "sae_weights.safetensors",
    ]
    np.testing.assert_allclose(load(tmp_path / "ours").norms, 1, atol=1e-6)


def test_what_cannot_be_written_is_said(tmp_path):
    dictionary, sae = jd.Dictionary(jnp.eye(4)), SAE(jnp.eye(4), jnp.zeros(4), jnp.eye(4), jnp.zeros(4))

    def of_kind(kind, scale=1):
        eye = jnp.eye(4)
        return SAE(eye * scale, jnp.zeros(4), eye, jnp.zeros(4), activation=Activation(kind, k=2))

    fitted = {"lam": 0.1, "encoder": "fitted", "X": jnp.ones((3, 4))}
    attempts = [
        (dictionary, {}, "lam is not given"),
        (dictionary, {"lam": -1.0}, "lam is -1.0"),
        (dictionary, {"lam": 0.1, "encoder": "magic"}, "encoder='magic' is unknown"),
        (dictionary, {"lam": 0.1, "encoder": "fitted"}, "needs X and codes"),
        (dictionary, fitted | {"codes": jnp.ones((3, 5))}, r"want \(samples, atoms\) = \(3, 4\)"),
        (dictionary, fitted | {"codes": -jnp.ones((3, 4))}, "codes are negative"),
        (dictionary, {"lam": 0.1, "format": "torch"}, "format='torch' cannot be written"),
        (sae, {"lam": 0.1}, "encoder of its own"),
        (jnp.eye(4), {"lam": 0.1}, "give an SAE or a Dictionary"),
        (of_kind("groupmax"), {}, "no architecture in SAELens"),
        (of_kind("matching_pursuit", 2), {}, "other vectors"),
    ]
    for thing, options, message in attempts:
        with pytest.raises(ValueError, match=message):
            save(thing, tmp_path / "sae", **options)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="is a file"):
        save(sae, tmp_path / "file")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
