"""`benchmarks/training.py`: a tiny table from planted rows, whatever is installed."""

from scripts import FOLDER, load


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
