"""`benchmarks/encoders.py` at tiny sizes: every encoder has a line, none is below exact codes."""

import jax
import numpy as np
import pytest
from scripts import FOLDER, load

import jaxdict as jd


@pytest.mark.slow
def test_every_encoder_has_a_line_and_none_is_below_exact_codes(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    encoders = load(FOLDER / "encoders.py")
    sizes = encoders.Sizes(n_atoms=12, lam=0.1, sae_steps=200, steps=30, batch_size=32, depths=(1, 2, 4), moves=(1, 4))
    monkeypatch.setattr(encoders, "CASES", {"planted": ("planted", lambda: encoders.planted(200, 50, 6, 10), sizes)})
    monkeypatch.setattr(encoders, "REPEATS", 1)
    monkeypatch.setattr(encoders, "TIMED_ROWS", 50)
    with jax.enable_x64(False):
        encoders.main(["--cases", "planted", "--out", str(tmp_path / "encoders.md")])
    assert (tmp_path / "encoders.png").stat().st_size > 10_000
    rows = [line.split(" | ") for line in (tmp_path / "encoders.md").read_text().splitlines() if line.startswith("| ")][
        1:
    ]
    excess = {row[0][2:]: float(row[4].split(" ± ")[0]) for row in rows}
    assert len(excess) == 2 + 3 * 3 + 2 * 3 + 2 * 2 + 4
    assert min(excess.values()) > -1e-5
    assert excess["learned, from zero, 2"] < excess["FISTA, 2"]
    assert excess["moves, from zero, 4"] < excess["moves, from zero, 1"]
    assert all(abs(value) < 1e-5 for name, value in excess.items() if name.startswith("exact"))
    assert all(0 < float(row[10].strip("| ")) <= 1 for row in rows)
    assert "10 true features" in (tmp_path / "encoders.md").read_text()


def test_features_that_codes_name(monkeypatch):
    """Two latents for the first feature, one for the second, one of no use; a row each of right, doubled, missed and wrong."""
    monkeypatch.syspath_prepend(FOLDER)
    encoders = load(FOLDER / "encoders.py")
    a, b = atoms = np.eye(2)
    codes = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    truth = jd.synthetic.Planted(codes, codes, jd.Dictionary(atoms, 0 * a), np.array([-1, -1]), np.array([-1, -1]), "")
    dictionary = jd.Dictionary(np.stack([a, 2 * a + 0.1 * b, b, a + 0.9 * b]))
    found = np.array([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    assert encoders.f1_of(dictionary, found, truth) == pytest.approx(2 * 3 / (4 + 5))
    assert np.isnan(encoders.f1_of(dictionary, found, None))
