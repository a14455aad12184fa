"""SAEs of every architecture are polished in their own currency, without an l1 coefficient, and come back as what they are."""

from pathlib import Path

import numpy as np
import pytest
from sae_cases import CASES, D
from sae_writers import write_folder

import jaxdict as jd
from jaxdict.auditing.kinds import has_l1_penalty

REAL = Path(__file__).parent / "data" / "dl_matryoshka"
QUICK = ("topk_rescaled",)
ONE_A_KIND = (
    *("standard", "jumprelu", "topk", "abstopk", "gated", "matching_pursuit", "layer_norm", "constant_norm"),
    *("no_centring", "checkpoint", "standard_scaled", "legacy_finetuned", "dl_standard", "dl_topk", "dl_batchtopk"),
    *(
        "dl_matryoshka",
        "dl_jumprelu",
        "dl_gated",
        "sparsify_groupmax",
        "gemma_scope",
        "openai_topk",
        "overcomplete_jump",
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*QUICK, *ONE_A_KIND])
def test_every_architecture_is_polished_as_what_it_is(name, tmp_path):
    case = CASES[name]
    write_folder(tmp_path / "sae", case.files)
    sae = jd.sae.load(tmp_path / "sae", **(case.options or {}))
    X = np.random.default_rng(0).normal(size=(480, D))
    lam = 0.3 if has_l1_penalty(sae) and sae.lam is None else None
    done = jd.polish(sae, X, lam, max_steps=4)
    assert done.lam == (lam or (sae.lam if has_l1_penalty(sae) else None))
    assert (done.solution is None) == (done.lam is None)
    assert done.better or done.sae is sae
    assert done.better == bool(done.sae_gain.gain > 3 * done.sae_gain.standard_error) or done.lam is None
    for kept in ("activation", "normalisation", "centred"):
        assert getattr(done.sae, kept) == getattr(sae, kept)
    if done.better:  # judged on 60 rows, and so it is on others
        fresh = np.random.default_rng(1).normal(size=(2000, D))
        assert _worth(done.sae, fresh, done.lam) < _worth(sae, fresh, done.lam)
        if done.lam is None:
            assert _active(done.sae, fresh) < 1.1 * _active(sae, fresh)
    if name != "sparsify_groupmax":  # SAELens has no such architecture
        read = jd.sae.load(done.save(tmp_path / "saved"))
        away = np.abs(np.asarray(read(X.astype(np.float32))) - np.asarray(done.sae(X))).max(axis=1)
        assert np.mean(away < 2e-3) > 0.99  # but for rows within rounding of a threshold


@pytest.mark.slow
def test_a_real_matryoshka_sae():
    """Rows like those that it was trained on, told apart by a little noise."""
    stored, rng = np.load(REAL / "expected.npz")["x"], np.random.default_rng(0)
    X = stored[rng.integers(0, len(stored), 800)] + 0.5 * rng.normal(size=(800, stored.shape[1])).astype(np.float32)
    sae = jd.sae.load(REAL)
    done = jd.polish(sae, X.astype(np.float32), max_steps=2)
    assert done.lam is None
    assert done.better or done.sae is sae
    assert float(done.active_after) <= 1.01 * float(done.active_before) or not done.better


def _worth(sae, X, lam):
    """The mean of the SAE's own value, where its dictionary lives."""
    one = sae.canonical()
    f = np.asarray(one.encode(X))
    r = np.asarray(one.normalise(X)) - f @ np.asarray(one.W_dec) - np.asarray(one.b_dec)
    squares = np.sum(r * r, axis=1)
    return np.mean(squares if lam is None else 0.5 * squares + lam * np.abs(f).sum(axis=1))


def _active(sae, X):
    return np.count_nonzero(np.asarray(sae.encode(X)), axis=1).mean()
