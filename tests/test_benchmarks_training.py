"""`benchmarks/training.py`: a tiny table from planted rows, whatever is installed."""

from dataclasses import dataclass

import pytest
from scripts import FOLDER, load

from jaxdict.sae.activations import Activation


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


RELU = Activation("relu")


@dataclass(frozen=True)
class Played:
    """An SAE by what makes it sparse alone."""

    number: float
    activation: Activation = RELU


def test_numbers_are_searched_until_codes_are_as_many_as_theirs(monkeypatch):
    """Ours has 10 lam^-0.7 codes, or 0.9 of the k steps that a pursuit may take; of theirs 40, 7.98 and 6."""
    training, tried = load(FOLDER / "training.py"), []

    def reached(sae, _):
        steps = sae.activation.k
        return 0.9, 10 * sae.number**-0.7 if steps is None else 0.9 * steps if sae.number else 6.0

    def ours(name, X, d_sae, samples, sparse):
        tried.append(sparse["lam"])
        return 0.0, Played(sparse["lam"])

    monkeypatch.setattr(training, "reached", reached)
    monkeypatch.setattr(training, "ours", ours)
    first, rule = (0.0, Played(0.05)), Activation("matching_pursuit", k=8)
    found = {
        "standard": [first, (0.0, Played((40 / 10) ** (-1 / 0.7)))],
        "topk": [first, "not in this SAELens"],
        "matching_pursuit": [(0.0, Played(1.0)), (0.0, Played(0.0, rule))],
    }
    *_, standard, pursuit = training.match_lines(found, None, 8, 100, None)
    standard, pursuit = (row.strip("| ").split(" | ") for row in (standard, pursuit))
    assert (standard[0], standard[4], pursuit[:2]) == ("standard", "lam 0.05", ["matching_pursuit", "k 7"])
    # From the second run on the law is known; the first of a lam is not made anew.
    assert len(tried) == 2
    assert float(standard[2]) == pytest.approx(40, rel=training.NEAR)
    assert [float(cell) for cell in pursuit[2:4] + pursuit[5:]] == [6.3, 0.9, 6.0, 0.9, 0.0]
    monkeypatch.setattr(training, "reached", lambda sae, _: (0.9, 1.0 if sae is first[1] else 40 + sae.number))
    training.at_their_number("standard", [first, (0.0, Played(900.0))], None, 8, 100, None)
    assert len(tried) == 2 + training.TRIES - 1  # and what cannot be reached is not tried for ever
