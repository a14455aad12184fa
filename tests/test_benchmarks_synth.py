"""`benchmarks/synth_bench.py`: a tiny table, whatever is installed."""

import pytest
from scripts import FOLDER, load


@pytest.mark.slow
def test_a_line_for_each_number(tmp_path, monkeypatch):
    script = load(FOLDER / "synth_bench.py")
    monkeypatch.setattr(script, "theirs", lambda *_: "sae-lens is not installed")
    script.main(["--features", "16", "--d", "8", "--rows", "2048", "--out", str(tmp_path / "synth.md")])
    rows = [line.split(" | ") for line in (tmp_path / "synth.md").read_text().splitlines()[6:]]
    told = {row[0].removeprefix("| "): float(row[1]) for row in rows}
    assert all("not installed" in row[2] for row in rows)
    assert 0 < told["mcc"] < 1
    assert told["true_l0"] == told["features on in a row"]


def test_two_samples_of_one_law_are_some_standard_errors_apart():
    script = load(FOLDER / "synth_bench.py")
    model = script.made(16, 8)
    found = [
        (0, None, script.synthetic.bench_sample(key, model, 2048).codes, {})
        for key in script.jax.random.split(script.jax.random.key(0))
    ]
    assert 0 < script.farthest(*found) < 4.5
    assert script.farthest(found[0], found[0]) == 0
