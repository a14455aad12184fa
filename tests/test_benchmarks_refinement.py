"""`benchmarks/refinement.py`: curves that end at the bound where there are few rays, and a line a width."""

import pytest
from scripts import FOLDER, load


@pytest.mark.slow
def test_curves_by_width(tmp_path):
    refinement = load(FOLDER / "refinement.py")
    refinement.main(["--data", "rays", "dense", "--seeds", "1", "--out", str(tmp_path / "refinement.md")])
    assert (tmp_path / "refinement.png").stat().st_size > 10_000
    lines = (tmp_path / "refinement.md").read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ") and "---" not in line]
    rays, dense = ([row for row in rows if len(row) == size and row[0] != "atoms"] for size in (6, 10))
    assert [int(row[0]) for row in rays] == [1, 2, 4, 8]  # T13
    assert abs(float(rays[-1][2])) < 1e-4
    assert [float(row[2]) for row in dense] == sorted((float(row[2]) for row in dense), reverse=True)
    assert all(float(row[7]) > 0.9 for row in dense[1:3])
    assert "globally optimal" in "\n".join(lines)
