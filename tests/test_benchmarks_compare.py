"""`benchmarks/compare.py`: its tables from rows made by hand, README.md's markers, and one tiny round of its codes."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
MACHINE = {
    "part": "machine",
    "small": False,
    "versions": {"jax": "1"},
    "machine": "m",
    "cores": 2,
    "load": "0.1",
    "date": "d",
}


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


@pytest.fixture
def tables(module):
    return module("compare_tables")


def code(solver, cpu, samples):
    row = {"part": "codes", "data": "p", "solver": solver, "samples": samples, "cpu": cpu, "wall": cpu}
    return row | {"first_wall": 1.0, "gap": 1e-10, "used": 3.0}


def fit(solver, cpu, defect, **more):
    row = {"part": "fits", "data": "f", "solver": solver, "iterations": 30, "cpu": cpu, "wall": cpu, "defect": defect}
    return row | {"objective": 0.5} | more


ROWS = [
    MACHINE,
    code("jaxdict, numba", [2.0, 1.0, 4.0], 100),
    code("slow", [3.0, 2.0, 1.0], 10),
    {"part": "codes", "data": "p", "solver": "gone", "samples": 10, "missing": "gone"},
    {"part": "wide", "data": "w", "solver": "pass", "samples": 9, "d": 2, "k": 3, "lam": 0.3, "first_wall": 0, "cpu": [2], "wall": [2]},
    {"part": "wide", "data": "w", "solver": "codes", "first_wall": 0, "cpu": [7], "wall": [9], "gap": 1e-8},
    fit("jaxdict fit", [9.0, 9.0], 1e-7, first_cpu=5, first_wall=5, lows=[[[1, 2, 1e-1], [3, 4, 1e-3]], [[2, 2, 1e-1], [5, 8, 1e-3]]]),
    fit("rival", [8.0, 8.0], 2e-3),
    fit("deep rival", [8.0], 1e-8),
    {"part": "fits", "data": "f", "solver": "long rival", "iterations": 200, "skipped": 1234.5, "limit": 300.0},
]  # fmt: skip


def test_ratios_are_seconds_a_sample_over_jaxdicts_median(tables):
    ratios = tables.code_ratios(ROWS)
    assert ratios["p", "jaxdict, numba"] == [1, 0.5, 2]
    assert ratios["p", "slow"] == pytest.approx([15, 10, 5])
    assert ("p", "gone") not in ratios


def test_time_to_a_rivals_defect_is_the_median_over_runs(tables):
    fits = [row for row in ROWS if row["part"] == "fits"]
    assert tables.reached(fits, fits[1]) == (4, 6)  # where both runs are at 1e-3, below 2e-3
    assert tables.against(fits[1], (4, 6)) == (2, pytest.approx(8 / 6))
    assert tables.reached(fits, fits[2]) is None


def test_the_report_tells_what_is_missing_left_out_and_not_reached(tables):
    text = tables.report(ROWS)
    assert "| slow | 10 (5 to 15) |" in text
    assert "| gone | not installed (gone) |" in text
    assert "| long rival | 200 | left out: about 1234 s, the limit is 300 s |" in text
    assert "| deep rival | 30 | 8 | 8 | 1.0e-08 | 0.500000 | not reached |" in text
    assert "| codes | 3.5 | 4.5 |" in text
    for block in text.split("\n\n"):  # every table has as many cells in each line
        assert len({line.count("|") for line in block.splitlines() if line.startswith("|")}) <= 1


def test_the_readmes_table_is_short_and_wants_everything(tables):
    lines = tables.readme_lines(ROWS)
    assert "| slow | 10 (1e-10) |" in lines
    assert "| rival, 30 | 2e-03 in 8.0 (4.0, 2) |" in lines
    assert lines[-2:] == [
        "These are times after a first call, which compiles: 5.0 to 5.0 wall seconds a shape.",
        "Rivals that were faster to their own defect: none.",
    ]
    faster = [*ROWS, fit("quick", [1.0], 2e-3)]
    assert tables.readme_lines(faster)[-1] == "Rivals that were faster to their own defect: quick, 30, on f (0.25)."
    assert len(lines) <= 25
    for rows in (ROWS[:4], [MACHINE | {"small": True}, *ROWS[1:]]):
        with pytest.raises(ValueError, match="all parts at full size"):
            tables.readme_lines(rows)


def test_only_what_stands_between_the_markers_is_replaced(tables):
    text = f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n"
    once = tables.between_markers(text, ["one", "two"])
    assert once == f"before\n{tables.BEGIN}\none\ntwo\n{tables.END}\nafter\n"
    assert tables.between_markers(once, ["one", "two"]) == once
    for bad in ("no markers", text + text, f"{tables.END}\n{tables.BEGIN}"):
        with pytest.raises(ValueError, match="once each and in this order"):
            tables.between_markers(bad, [])


@pytest.mark.slow
def test_a_tiny_round_of_codes(module, monkeypatch, tmp_path):
    """All that is installed solves the same problem; what is not gets a row that says so; the rows give the report again."""
    for needed in ("sklearn", "PIL", "numba"):
        pytest.importorskip(needed)
    monkeypatch.setitem(sys.modules, "spams", None)  # importing it fails
    compare, tables, out = module("compare"), module("compare_tables"), tmp_path / "tiny.md"
    rows = compare.main(["--only", "codes", "--small", "--repeats", "2", "--out", str(out)])
    ratios = tables.code_ratios(rows)
    assert all(np.isfinite(ratio).all() for ratio in ratios.values())
    ours = [ratio for (_, solver), ratio in ratios.items() if solver == tables.BASE]
    assert [np.median(ratio) for ratio in ours] == pytest.approx([1, 1])
    assert {row["missing"] for row in rows[1:] if row["solver"] == "SPAMS lasso"} == {"spams"}
    assert max(row["gap"] for row in rows[1:] if "gap" in row) <= 1e-6
    text = out.read_text()
    assert text.count("| SPAMS lasso | not installed (spams) |") == 2
    assert json.loads(out.with_suffix(".json").read_text()) == rows
    compare.main(["--from-json", "--out", str(out)])
    assert out.read_text() == text


def test_the_readme_is_not_written_from_tiny_sizes(module, capsys):
    pytest.importorskip("sklearn")
    with pytest.raises(SystemExit):
        module("compare").main(["--readme", "--small"])
    assert "full size" in capsys.readouterr().err


def test_the_readme_is_made_again_from_what_was_kept(module, monkeypatch, tmp_path):
    pytest.importorskip("sklearn")
    compare, tables, readme = module("compare"), module("compare_tables"), tmp_path / "README.md"
    monkeypatch.setattr(compare, "README", readme)
    (tmp_path / "kept.json").write_text(json.dumps(ROWS))
    arguments = ["--readme", "--from-json", "--out", str(tmp_path / "kept.md")]
    readme.write_text("no markers")
    with pytest.raises(ValueError, match="once each and in this order"):
        compare.main(arguments)
    readme.write_text(f"{tables.BEGIN}\n{tables.END}\n")
    compare.main(arguments)
    assert readme.read_text().splitlines() == [tables.BEGIN, *tables.readme_lines(ROWS), tables.END]


@pytest.mark.slow
def test_a_tiny_round_of_fits(module, tmp_path):
    for needed in ("sklearn", "PIL", "spams"):
        pytest.importorskip(needed)
    compare, tables = module("compare"), module("compare_tables")
    rows = compare.main(["--only", "fits", "--small", "--repeats", "2", "--out", str(tmp_path / "tiny.md")])[1:]
    assert len(rows) == 3 * 7
    assert all(row["defect"] <= 1e-3 for row in rows if "lows" in row)
    for row in rows:
        if "lows" not in row:  # after 2 or 4 iterations: far from where ours ends
            times = tables.reached(rows, row)
            assert times is not None
            assert all(np.isfinite(ratio) and ratio > 0 for ratio in tables.against(row, times))
    # A limit of no time at all leaves every rival out, and says so.
    X, _ = compare.peers.planted()
    (left_out,) = compare.rival_fits("SPAMS trainDL, batch", X[:50], 8, 1, 0.0)
    assert "the limit is 0 s" in tables.absent(left_out)
