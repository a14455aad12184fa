"""The embedded activations are what their note says."""

from importlib import resources

import numpy as np
import pytest

from jaxdict import datasets


def test_minilm_tokens():
    data = datasets.load("minilm_tokens")
    assert data.X.shape == (4096, 384)
    assert data.X.dtype == np.float32
    assert np.isfinite(data.X).all()
    assert len(data.tokens) == len(data.topic) == len(data.pos) == 4096
    assert np.linalg.norm(data.X, axis=1).mean() == pytest.approx(12.37, abs=0.01)


def test_rank_is_one_short_of_full():
    """A LayerNorm's output lies in an affine hyperplane, so the centred rank is 383, up to the rounding to float16."""
    X = datasets.load("minilm_tokens").X.astype(np.float64)
    variances = np.linalg.eigvalsh(np.cov(X.T))
    assert variances[0] < 1e-5 * variances[1]


def test_licence_note_is_beside_the_data():
    note = resources.files("jaxdict.datasets").joinpath("LICENSE-minilm_tokens.md").read_text()
    assert "Apache" in note
    assert "PSF" in note


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="minilm_tokens"):
        datasets.load("mnist")
