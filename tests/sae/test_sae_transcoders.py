"""Transcoders: read as their packages' equations say, and audited by what they predict."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sae_cases import SPARSIFY_CFG, D, K, N, config, keep_top, relu
from sae_writers import write_folder

import jaxdict as jd
from jaxdict.files import Shards
from jaxdict.sae import Transcoder, load
from jaxdict.sae.transcoders import Joined, paired

OUT = D + 3
RNG = np.random.default_rng(7)
W_ENC, W_DEC = RNG.normal(size=(D, N)).astype("f4"), RNG.normal(size=(N, OUT)).astype("f4")
B_ENC, B_DEC = 0.1 * RNG.normal(size=N).astype("f4"), RNG.normal(size=OUT).astype("f4")
SKIP, CUT = RNG.normal(size=(D, OUT)).astype("f4"), 0.3 * np.abs(RNG.normal(size=N)).astype("f4")
X = RNG.normal(size=(20, D)).astype("f4")
FOUR = {"W_enc": W_ENC, "b_enc": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC}
LOWER = {"w_enc": W_ENC, "b_enc": B_ENC, "w_dec": W_DEC, "b_dec": B_DEC, "threshold": CUT}
LINEAR = {"encoder.weight": np.ascontiguousarray(W_ENC.T), "encoder.bias": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC}
SKIP_T = {"W_skip": np.ascontiguousarray(SKIP.T)}


def predicted(cut=0.0, skip=False, k=None):
    pre = X.astype(float) @ W_ENC + B_ENC
    f = keep_top(relu(pre), pre, k) if k else relu(pre) * (pre > cut)
    return f, f @ W_DEC + B_DEC + (X.astype(float) @ SKIP if skip else 0)


def saelens(architecture, tensors):
    cfg = config(architecture, d_out=OUT, apply_b_dec_to_input=False)
    return {"cfg.json": cfg, "sae_weights.safetensors": tensors}


CASES = {
    "saelens": (saelens("transcoder", FOUR), predicted()),
    "saelens_skip": (saelens("skip_transcoder", FOUR | SKIP_T), predicted(skip=True)),
    "saelens_jumprelu": (saelens("jumprelu_transcoder", FOUR | {"threshold": CUT}), predicted(CUT)),
    "saelens_both": (
        saelens("jumprelu_skip_transcoder", FOUR | SKIP_T | {"threshold": CUT}),
        predicted(CUT, skip=True),
    ),
    "sparsify": ({"sae.safetensors": LINEAR, "cfg.json": SPARSIFY_CFG | {"transcode": True}}, predicted(k=K)),
    "sparsify_skip": (
        {"sae.safetensors": LINEAR | SKIP_T, "cfg.json": SPARSIFY_CFG | {"transcode": True, "skip_connection": True}},
        predicted(k=K, skip=True),
    ),
    "gemma_2": ({"params.safetensors": LOWER | {"affine_skip_connection": SKIP}}, predicted(CUT, skip=True)),
    "gemma_1": ({"gemma-scope-2b-pt-transcoders/layer_5/params.npz": LOWER}, predicted(CUT)),
}


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_packages_equations(name, tmp_path):
    files, (features, prediction) = CASES[name]
    sae = load(write_folder(tmp_path, files))
    assert isinstance(sae, Transcoder)
    assert (sae.d_in, sae.d_out, sae.d_sae) == (D, OUT, N)
    np.testing.assert_allclose(sae.encode(X), features, atol=5e-5)
    np.testing.assert_allclose(sae(X), prediction, atol=1e-4)
    np.testing.assert_allclose(sae.canonical()(X), prediction, atol=1e-4)
    np.testing.assert_allclose(jax.jit(jax.vmap(lambda sae, x: sae(x), (None, 0)))(sae, X), prediction, atol=1e-4)


def test_lam_is_that_of_an_l1_transcoder(tmp_path):
    details = {"training_architecture": "transcoder", "training_architecture_details": {"l1_coefficient": 0.8}}
    files = saelens("transcoder", FOUR)
    files["cfg.json"]["metadata"] |= details
    assert load(write_folder(tmp_path, files)).lam == 0.4


def planted(skip):
    """A transcoder at the truth: rows of the input say which features are on, the target is their sum."""
    rng = np.random.default_rng(0)
    atoms = np.linalg.qr(rng.normal(size=(OUT, OUT)))[0][:6]
    codes = rng.uniform(0.5, 1.5, (300, 6)) * (rng.random((300, 6)) < 0.3)
    read = np.linalg.qr(rng.normal(size=(D, D)))[0][:6]
    X = (codes @ read).astype("f4")
    W_skip = 0.5 * rng.normal(size=(D, OUT)) if skip else None
    Y = codes @ atoms + 0.02 * rng.normal(size=(300, OUT)) + (X @ W_skip if skip else 0)
    parts = [jnp.asarray(part, jnp.float32) for part in (read.T, np.zeros(6), atoms, np.zeros(OUT))]
    skipped = None if W_skip is None else jnp.asarray(W_skip, jnp.float32)
    return Transcoder(*parts, centred=False, W_skip=skipped), X, Y.astype("f4")


@pytest.mark.slow
@pytest.mark.parametrize("skip", [False, True])
def test_an_audit_is_of_the_prediction(skip):
    sae, X, Y = planted(skip)
    found = jd.audit(sae, X, 0.05, target=Y, descent_steps=0)
    error = np.sum((Y - np.asarray(sae(X))) ** 2, axis=1).mean()
    measured = found.measures
    assert measured["squared_error"] == pytest.approx(error, rel=1e-5)
    variance = np.sum((Y - Y.mean(0)) ** 2, axis=1).mean()
    assert measured["explained_variance"] == pytest.approx(1 - error / variance, rel=1e-5)
    penalty = 0.05 * np.asarray(sae.encode(X)).sum(1).mean()
    assert measured["objective"] == pytest.approx(error / 2 + penalty, rel=1e-5)
    assert measured["amortisation_gap"] >= 0
    document = found.document
    assert (document["sae"]["d_in"], document["sae"]["d_out"]) == (D, OUT)
    assert "its encoder cannot" in document["verdict"][-1]


@pytest.mark.slow
def test_turned_atoms_are_lost_to_the_decoder():
    sae, X, Y = planted(skip=True)
    turned = sae.W_dec.at[0].set((sae.W_dec[0] + sae.W_dec[1]) / 2**0.5)
    parts = [sae.W_enc, sae.b_enc, turned, sae.b_dec]
    worse = Transcoder(*parts, centred=False, W_skip=sae.W_skip)
    parts = {part["name"]: part for part in jd.audit(worse, X, target=Y, descent_steps=0).document["split"]["parts"]}
    assert parts["decoder"]["shown"] or parts["supports"]["shown"]


def test_rows_are_joined_where_they_are_looked_at():
    sae, X, Y = planted(skip=True)
    both, rows = paired(sae, X, Y)
    assert isinstance(rows, Joined)
    assert rows.shape == (300, D + OUT) == (300, both.d_in)
    np.testing.assert_allclose(both.encode(rows[:5]), sae.encode(X[:5]), rtol=1e-6)
    np.testing.assert_allclose(both.decode(both.encode(rows[:5]), rows[:5]), sae(X[:5]), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(both.target(rows[:5]), Y[:5])
    np.testing.assert_allclose(both.normalise(rows[:5]), Y[:5] - X[:5] @ np.asarray(sae.W_skip), atol=1e-5)


def test_shards_left_out_of_one_side_alone_are_refused():
    """Two folders that lost different shards of one size would pair rows that have nothing to do with each other."""
    sae, X, Y = planted(skip=False)
    read, wanted = Shards([X[:200]], left_out=["part-2.npy"]), Shards([Y[:200]], left_out=["part-1.npy"])
    with pytest.raises(ValueError, match=r"left out of X \('part-2.npy'\) and of target \('part-1.npy'\)"):
        paired(sae, read, wanted)
    assert paired(sae, read, Shards([Y[:200]], left_out=["part-2.npy"]))[1].shape == (200, D + OUT)


def test_misuse_is_refused():
    sae, X, Y = planted(skip=False)
    plain = jd.sae.tied_sae(jd.Dictionary(jnp.eye(D), jnp.zeros(D)), 0.1)
    for call, words in [
        (lambda: jd.audit(sae, X), "this is a transcoder: it predicts activations of width 9"),
        (lambda: jd.audit(sae, X, target=Y[:5]), r"target has shape \(5, 9\)"),
        (lambda: jd.audit(sae, X, target=Y.astype(int)), "dtype int64"),
        (lambda: jd.audit(plain, X, target=X), "leave target out"),
        (lambda: jd.polish(sae, X, 0.1), "a transcoder cannot be polished"),
        (lambda: jd.sae.save(sae, "nowhere"), "a transcoder cannot be written"),
        (lambda: planted(skip=True)[0].decode(jnp.zeros(6)), r"use decode\(f, x\)"),
        (lambda: sae.rescaled(2.0), "scale=2.0"),
        (lambda: Transcoder(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec), "centred: b_dec of width 9"),
        (lambda: Transcoder(*_parts(sae), centred=False, W_skip=jnp.zeros((2, 2))), r"W_skip has shape \(2, 2\)"),
        (lambda: Transcoder(*_parts(sae), centred=False, normalisation="layer_norm"), "normalises its input"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()


def _parts(sae):
    return sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec


def test_a_turned_encoder_says_so():
    with pytest.raises(
        ValueError, match=r"W_enc has shape \(12, 6\), expected \(6, 12\) .*; transpose it, torch's Linear"
    ):
        jd.sae.SAE(jnp.zeros((12, 6)), jnp.zeros(12), jnp.zeros((12, 6)), jnp.zeros(6))
