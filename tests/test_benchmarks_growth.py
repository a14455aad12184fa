"""`benchmarks/growth.py`: from rows to the table, every run in this process."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from scripts import FOLDER, load


@pytest.mark.slow
def test_from_rows_to_the_table(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    growth = load(FOLDER / "growth.py")
    luck = np.random.default_rng(0)
    np.save(tmp_path / "acts.npy", (luck.normal(size=(2400, 6)) ** 3 + 1).astype(np.float16))

    def here(call, **_):  # instead of a process of its own
        growth.main(call[2:])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(growth.subprocess, "run", here)
    settings = ["--rows", "800", "--fresh", "600", "--widths", "4,8", "--lam", "0.3", "--folder", str(tmp_path / "out")]
    growth.main([str(tmp_path / "acts.npy"), *settings, "--out", str(tmp_path / "growth.md")])
    kept = json.loads((tmp_path / "growth.json").read_text())
    assert [row["width"] for row in kept["table"]] == [4, 8]
    first, second = kept["table"]
    assert second["grown"][0] < first["grown"][0]
    assert kept["facts"]["fresh"] == 600
    assert kept["facts"]["ratio"] > 0
    told = (tmp_path / "growth.md").read_text()
    assert f"{second['grown'][0]:.5f}" in told
