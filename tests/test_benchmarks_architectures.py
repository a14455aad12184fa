"""`benchmarks/architectures.py`: one line an SAE, its shares those of the audit."""

import numpy as np
import pytest
from scripts import FOLDER, load

import jaxdict as jd

architectures = load(FOLDER / "architectures.py")


def test_a_part_is_bold_where_it_is_shown():
    part = {"mean": 0.5, "standard_error": 0.1, "shown": True}
    assert architectures.cell(part, 2.0) == "**25.0 ± 5.0**"
    assert architectures.cell(part | {"shown": False}, 2.0) == "25.0 ± 5.0"
    assert architectures.cell(dict.fromkeys(part), 2.0) == "not measured"


@pytest.mark.slow
def test_a_line_for_each_folder(tmp_path, monkeypatch):
    X = np.random.default_rng(0).normal(size=(80, 4)).astype(np.float32)
    np.savez(tmp_path / "acts.npz", acts=X, doc=np.arange(80) // 4)
    (tmp_path / "saes").mkdir()
    for name in ("first", "second"):
        jd.sae.save(
            jd.Dictionary(np.eye(4, dtype=np.float32), np.zeros(4, np.float32)), tmp_path / "saes" / name, lam=0.1
        )
    given = [str(tmp_path / "saes"), str(tmp_path / "acts.npz"), "--rows", "40", "--out", str(tmp_path / "out.md")]
    monkeypatch.setattr("sys.argv", ["architectures.py", *given])
    architectures.main()
    text = (tmp_path / "out.md").read_text()
    assert "80 rows of 20 documents" in text
    lines = [line for line in text.splitlines() if line.startswith(("| first", "| second"))]
    assert len(lines) == 2
    assert all("standard" in line and line.count("|") == 13 for line in lines)
    assert text.count("- first: ") == 1
