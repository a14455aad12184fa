"""`benchmarks/training.py`: a tiny table from planted rows, whatever is installed."""

import pytest
from scripts import FOLDER, load


@pytest.mark.slow
def test_a_line_for_each_architecture(tmp_path, monkeypatch):
    training = load(FOLDER / "training.py")
    monkeypatch.setattr(training, "theirs", lambda *_: "sae-lens is not installed")
    sizes = [
        "--samples",
        "20480",
        "--d",
        "8",
        "--atoms",
        "16",
        "--rows",
        "2000",
        "--out",
        str(tmp_path / "training.md"),
    ]
    training.main(["--architectures", "standard", "topk", *sizes])
    rows = [line.split(" | ") for line in (tmp_path / "training.md").read_text().splitlines()[6:]]
    assert [row[0] for row in rows] == ["| standard", "| topk"]
    assert all(float(row[1].replace(",", "")) > 0 and 0 < float(row[3]) <= 1 for row in rows)
    assert 0 < float(rows[1][4]) <= 8
    assert all(row[6] == "sae-lens is not installed" for row in rows)


@pytest.mark.slow
def test_many_runs_as_one_program_and_one_by_one(tmp_path, monkeypatch):
    training = load(FOLDER / "training.py")
    monkeypatch.setattr(training, "BATCH", 32)
    monkeypatch.setattr(training, "SHARES", (0.5, 1.0))
    sizes = ["--samples", "640", "--d", "4", "--atoms", "16", "--rows", "100", "--many", "3"]
    training.main(["--architectures", *sizes, "--out", str(tmp_path / "training.md")])
    *head, about, _, _, _, standard, topk = (tmp_path / "training.md").read_text().splitlines()
    assert not any(line.startswith("| ") for line in head)
    assert about.startswith("3 SAEs of an architecture, seeds x sparsities")
    for name, row in (("standard", standard), ("topk", topk)):
        cells = row.strip("| ").split(" | ")
        assert cells[0] == name
        assert all(float(cell.replace(",", "")) > 0 for cell in cells[1:5])
        assert all(float(cell) < 1e-3 for cell in cells[5:])
    # A seed has every sparsity before the next one begins.
    assert training.sparsities("topk", 5) == {"k": [4, 8, 4, 8, 4]}
