"""`benchmarks/study_planted.py`, `benchmarks/study_real.py`: from rows to the tables, tiny."""

import json

import numpy as np
import pytest
from scripts import FOLDER, load


@pytest.mark.slow
def test_planted_hierarchies_from_rows_to_the_table(tmp_path):
    study = load(FOLDER / "study_planted.py")
    out = tmp_path / "planted.md"
    sizes = ["--seeds", "2", "--steps", "60", "--rows", "2000", "--cases", "0.3", "--ratios", "8", "--out", str(out)]
    study.main(["--architectures", "standard", "batchtopk", "matryoshka", *sizes])
    kept = json.loads(out.with_suffix(".json").read_text())
    told = kept["cases"]["0.3"]["told"]
    assert list(told) == ["standard", "optimum of P", "batchtopk", "matryoshka"]
    assert np.shape(told["standard"]["cosine"]) == (2, 16)
    assert np.shape(told["optimum of P"]["cosine"]) == (1, 16)
    assert "Batch top-k's absorption less Matryoshka's" in out.read_text()


def test_the_cosine_that_a_penalty_holds_is_where_the_theorem_is_stationary():
    """Constant codes: along T21's path the penalty itself, summed as numbers, is least where the cosine is said to be held."""
    study = load(FOLDER / "study_planted.py")
    z_i, z_j, cosine = np.full(5, 8.0), np.ones(5), 0.1
    held = study.held_cosine(z_i, z_j, cosine)
    a = np.linspace(0.05, -1, 200_001)
    lengths = np.sqrt((1 - cosine**2) + (cosine - a) ** 2)
    penalty = (8 + a) ** study.POWER + lengths**study.POWER
    slope = np.gradient(penalty, a)
    at = np.flatnonzero(np.diff(np.sign(slope)))
    cosines = ((cosine - a) / lengths)[at]
    # Steps of the search along the path are 0.002 wide at most, and the cosine moves as they do.
    assert np.min(np.abs(cosines - held)) < 4e-3


@pytest.mark.slow
def test_real_rows_from_a_file_to_the_page(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    study = load(FOLDER / "study_real.py")
    luck = np.random.default_rng(0)
    codes = luck.exponential(size=(1600, 24)) * (luck.uniform(size=(1600, 24)) < 0.15)
    atoms = luck.normal(size=(24, 10))
    np.save(tmp_path / "acts.npy", (codes @ atoms).astype(np.float16))
    documents = np.arange(1600) // 16
    np.save(tmp_path / "documents.npy", documents)
    about = {"token_id": codes.argmax(axis=1) % 5, "doc": documents, "pos": np.arange(1600) % 16}
    words = {"vocab": np.array([",", "the", "##s", "of", "7"]), "doc_topic": np.array(["x", "y"])[np.arange(100) % 2]}
    np.savez(tmp_path / "tokens.npz", **about, **words)
    study.COUNTS, study.LAMS = (1, 2, 3), {"standard": (0.3, 0.15, 0.05)}
    sizes = [
        "--atoms",
        "24",
        "--steps",
        "150",
        "--batch",
        "64",
        "--judged",
        "160",
        "--dictionaries",
        "0.2",
        "--epochs",
        "1",
    ]
    place = ["--folder", str(tmp_path / "study"), "--out", str(tmp_path / "real.md")]
    data = [str(tmp_path / "acts.npy"), "--documents", str(tmp_path / "documents.npy")]
    data += ["--tokens", str(tmp_path / "tokens.npz"), "--seeds", "2"]
    study.main([*data, "--architectures", "standard", "topk", *sizes, *place])
    kept = json.loads((tmp_path / "real.json").read_text())
    assert {entry["name"] for entry in kept["arbitration"]["entries"]} == {"standard", "topk"}
    assert len(kept["choices"]["dictionaries"]) == 7
    assert (tmp_path / "study" / "arbitration.html").exists()
    assert "Dictionaries alone" in (tmp_path / "real.md").read_text()
    figures = kept["latents"]["figures"]
    of_p = next(name for name in figures if name.startswith("dictionary of P"))
    assert list(figures) == ["standard", "topk", of_p]
    assert all(0 < one["token"][0] <= 1 for one in figures.values())
    assert len(kept["latents"]["differences"]) == 3
    assert "What single latents stand for" in (tmp_path / "real.md").read_text()
    again = study.asked([*data, "--folder", str(tmp_path / "study")])
    assert all(folder.exists() for name in ("standard", "topk") for *_, folder in study.places(name, again))
