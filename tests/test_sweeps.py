"""Sweeps: the same as single fits, rows on disk that survive a kill, bad runs alone, paths, devices and processes."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdict as jd
from jaxdict.sweeps.books import Book, Run
from jaxdict.sweeps.running import _settings

X = jax.random.normal(jax.random.key(3), (60, 4))
GRID = {"lams": [0.4, 0.8], "n_atoms": 5, "seeds": (0, 1), "tol": 1e-7, "max_steps": 400}


@pytest.fixture(scope="module")
def whole():
    return jd.sweep(X, **GRID)


def comparable(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_rows_are_those_of_single_fits(whole):
    assert [(row["lam"], row["seed"]) for row in whole.rows] == [(0.4, 0), (0.4, 1), (0.8, 0), (0.8, 1)]
    for row in whole.rows:
        one = jd.fit(jd.Problem(lam=row["lam"]), X, 5, key=jax.random.key(row["seed"]), tol=1e-7, max_steps=400)
        assert row["status"] == int(one.status) == 0
        assert row["objective"] == pytest.approx(float(one.objective), rel=1e-9)
        assert row["l0"] == pytest.approx(float(jnp.mean(jnp.sum(one.codes != 0, axis=1))), abs=1e-12)
        left = jd.residual(one.dictionary, one.codes, X)
        explained = 1 - jnp.sum(left**2) / jnp.sum((X - X.mean(0)) ** 2)
        assert row["explained_variance"] == pytest.approx(float(explained), rel=1e-6)
        assert row["stationarity"] <= 1e-7


@pytest.mark.slow
def test_a_batch_is_one_program_and_gives_the_same_rows(whole):
    together = jd.sweep(X, **GRID, batch=4)
    for one, other in zip(whole.rows, together.rows, strict=True):
        assert one["objective"] == pytest.approx(other["objective"], rel=1e-9)
        assert one["status"] == other["status"]


def test_a_killed_sweep_resumes_with_what_it_had(tmp_path, whole):
    class Killed(Exception):
        pass

    def kill(done, total):
        if done >= 2:
            raise Killed

    with pytest.raises(Killed):
        jd.sweep(X, **GRID, directory=tmp_path, progress=kill)
    file = tmp_path / "rows.jsonl"
    kept = file.read_text().splitlines()
    assert len(kept) == 2
    with open(file, "a") as half:  # a line cut short by the kill
        half.write('{"run": "abc", "sta')
    seen = []
    done = jd.sweep(X, **GRID, directory=tmp_path, progress=lambda n, total: seen.append((n, total)))
    assert seen == [(3, 4), (4, 4)]  # nothing that was finished is done again
    assert file.read_text().splitlines()[:2] == kept
    assert comparable(done.rows) == comparable(whole.rows)
    again = jd.sweep(X, **GRID, directory=tmp_path, progress=lambda n, total: seen.append(None))
    assert None not in seen
    assert comparable(again.rows) == comparable(whole.rows)


def test_rows_of_other_data_or_settings_are_not_mistaken_for_these(tmp_path, whole):
    jd.sweep(X, **GRID, directory=tmp_path)
    seen = []
    jd.sweep(X + 0.1, **GRID, directory=tmp_path, progress=lambda n, total: seen.append(n))
    jd.sweep(X, **(GRID | {"tol": 1e-4}), directory=tmp_path, progress=lambda n, total: seen.append(n))
    assert len(seen) == 8


TALL = np.asarray(jax.random.normal(jax.random.key(5), (1100, 4)))
SHORT = {"lams": [0.8], "n_atoms": 4, "tol": 1e-2, "max_steps": 20}


def changed(array, at=-1):
    """The same array but for its last bit."""
    out = np.array(array)
    out[at] = np.nextafter(out[at], np.inf)
    return out


def test_names_hold_every_byte_of_weights_and_metric(tmp_path):
    """Of more than a thousand rows too: another weight is another sweep."""
    weights, metric = np.linspace(0.5, 2, len(TALL)), np.ones(4)
    problems = [
        jd.Problem(lam=1.0),
        jd.Problem(lam=1.0, weights=weights),
        jd.Problem(lam=1.0, weights=changed(weights)),
        jd.Problem(lam=1.0, metric=metric),
        jd.Problem(lam=1.0, metric=changed(metric)),
        jd.Problem(lam=1.0, offset=False),
    ]
    names = set()
    for problem in problems:
        book = Book(
            tmp_path, _settings(problem, jd.solvers.Combined(), "data", 1e-2, 20, False), {"a": TALL}, keep=False
        )
        names.add(book.name(Run("a", 4, 0.8, 0)))
    for solver, X in (
        (jd.solvers.Alternating(), TALL),
        (jd.solvers.Combined(), changed(TALL)),
        (jd.solvers.Combined(), TALL[:-1]),
    ):
        book = Book(tmp_path, _settings(problems[0], solver, "data", 1e-2, 20, False), {"a": X}, keep=False)
        names.add(book.name(Run("a", 4, 0.8, 0)))
    assert len(names) == len(problems) + 3


@pytest.mark.slow
def test_rows_of_other_weights_are_not_given_for_these(tmp_path):
    doubled = np.ones(len(TALL))
    doubled[:550] = 3.0
    found = [
        jd.sweep(TALL, **SHORT, problem=jd.Problem(lam=1.0, weights=weights), directory=tmp_path).rows[0]
        for weights in (np.ones(len(TALL)), doubled, np.ones(len(TALL)))
    ]
    assert found[0] == found[2]
    assert found[0]["run"] != found[1]["run"]
    problem = jd.Problem(lam=0.8, weights=doubled)
    one = jd.fit(problem, TALL, 4, key=jax.random.key(0), tol=1e-2, max_steps=20)
    assert found[1]["objective"] == pytest.approx(float(one.objective), rel=1e-9)
    # L0 and explained variance are weighted means as the objective is: those of the rows written out three times.
    Z, left = np.asarray(one.codes), np.asarray(jd.residual(one.dictionary, one.codes, TALL))
    times = doubled.astype(int)
    Z, left, rows = (np.repeat(part, times, axis=0) for part in (Z, left, TALL))
    assert found[1]["l0"] == pytest.approx((Z != 0).sum(axis=1).mean(), rel=1e-9)
    explained = 1 - np.sum(left**2) / np.sum((rows - rows.mean(axis=0)) ** 2)
    assert found[1]["explained_variance"] == pytest.approx(explained, rel=1e-9)


def test_data_sets_of_equal_values_keep_their_names():
    found = jd.sweep({"a": X, "b": X + 0}, lams=[0.8], n_atoms=5, tol=1e-2, max_steps=400)
    assert [row["data"] for row in found.rows] == ["a", "b"]


def test_processes_that_start_apart_share_the_whole_grid(tmp_path, whole, monkeypatch):
    """The second starts when the first has ended: both shares together are the grid, whatever each finds done."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for process, kept in ((0, 2), (1, 4)):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        found = jd.sweep(X, **GRID, directory=tmp_path)
        assert (len(found.rows), found.unfinished) == (kept, 4 - kept)
        assert ("2 more are other processes'" in found.message()) == (kept == 2)
    assert comparable(found.rows) == comparable(whole.rows)


def test_rows_that_others_finish_meanwhile_are_not_made_again(tmp_path):
    def another(done, total):  # another process does the rest while this one is at its first run
        if done == 1:
            jd.sweep(X, **GRID, directory=tmp_path)

    seen = []
    jd.sweep(X, **GRID, directory=tmp_path, progress=lambda n, total: (seen.append(n), another(n, total)))
    assert seen == [1]
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 4


@pytest.mark.slow
def test_a_bad_run_leaves_the_others_alone(whole):
    bad = X.at[7, 1].set(jnp.nan)
    found = jd.sweep({"good": X, "bad": bad}, lams=[0.4, 1e6], n_atoms=5, seeds=(0,), tol=1e-7, max_steps=400, batch=2)
    by = {(row["data"], row["lam"]): row for row in found.rows}
    assert by["good", 0.4]["objective"] == pytest.approx(whole.rows[0]["objective"], rel=1e-9)
    assert by["good", 1e6]["status"] == 5  # all codes zero: at or above lam_max
    assert by["bad", 0.4]["status"] == -1
    assert "NaN" in by["bad", 0.4]["message"]
    assert len(found.failed()) == 3
    assert "refused" in found.message()


@pytest.mark.slow
def test_a_path_starts_each_lam_where_the_last_ended(tmp_path):
    lams = [0.4, 0.5, 0.6, 0.8]
    options = {"lams": lams, "n_atoms": 5, "seeds": (0, 1), "tol": 1e-7, "max_steps": 400}
    path = jd.sweep(X, **options, path=True, directory=tmp_path)
    assert [row["status"] for row in path.rows] == [0] * 8
    apart = jd.sweep(X, **options)
    # The first of the path is the same run; the others start nearer, and need fewer steps in all.
    assert path.rows[-1]["objective"] == pytest.approx(apart.rows[-1]["objective"], rel=1e-9)
    below = lambda rows: sum(row["steps"] for row in rows if row["lam"] < 0.8)  # noqa: E731
    assert below(path.rows) < below(apart.rows)
    # Stopped in the middle of the path, it goes on from the dictionary that was kept.
    rows = (tmp_path / "rows.jsonl").read_text().splitlines()
    kept = [line for line in rows if json.loads(line)["lam"] >= 0.6]
    (tmp_path / "rows.jsonl").write_text("\n".join(kept) + "\n")
    again = jd.sweep(X, **options, path=True, directory=tmp_path)
    for one, other in zip(path.rows, again.rows, strict=True):
        assert one["objective"] == pytest.approx(other["objective"], rel=1e-9)


@pytest.mark.slow
def test_dictionaries_are_kept_where_asked(tmp_path):
    jd.sweep(
        X, lams=[0.8], n_atoms=5, tol=1e-7, max_steps=400, directory=tmp_path
    )  # kept all the same where rows are there
    found = jd.sweep(X, lams=[0.8], n_atoms=5, tol=1e-7, max_steps=400, directory=tmp_path, keep_dictionaries=True)
    with np.load(tmp_path / f"{found.rows[0]['run']}.npz") as kept:
        dictionary = jd.Dictionary(jnp.asarray(kept["atoms"]), jnp.asarray(kept["offset"]))
    codes = jd.encode(jd.Problem(lam=0.8), dictionary, X, tol=1e-12).codes
    assert float(jd.objective(jd.Problem(lam=0.8), dictionary, codes, X)) == pytest.approx(
        found.rows[0]["objective"], rel=1e-9
    )
    with pytest.raises(ValueError, match="directory"):
        jd.sweep(X, lams=[0.8], n_atoms=5, keep_dictionaries=True)


def test_an_empty_grid_is_refused():
    with pytest.raises(ValueError, match="empty"):
        jd.sweep(X, lams=[], n_atoms=5)


def test_plot_draws_a_line_for_each_width(whole):
    axes = whole.plot()
    assert [len(ax.lines) for ax in axes] == [1, 1, 1, 1]
    np.testing.assert_allclose(axes[0].lines[0].get_xdata(), [0.4, 0.8])
    means = [np.mean([r["objective"] for r in whole.rows if r["lam"] == lam]) for lam in (0.4, 0.8)]
    np.testing.assert_allclose(axes[0].lines[0].get_ydata(), means)
    assert axes[3].get_yscale() == "log"


EIGHT = """
    import json, jax, sys
    jax.config.update("jax_enable_x64", True)
    import jaxdict as jd
    from test_sweeps import GRID, X
    assert jax.device_count() == 8
    print(json.dumps(jd.sweep(X, **GRID).rows))
"""

TWO = """
    import os, sys
    import jax
    jax.config.update("jax_enable_x64", True)
    jax.distributed.initialize("localhost:" + sys.argv[3], num_processes=2, process_id=int(sys.argv[1]))
    import jaxdict as jd
    from test_sweeps import GRID, X
    jd.sweep(X, **GRID, directory=sys.argv[2])
    print("done")
"""


def run_script(script, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        cwd=Path(__file__).parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_eight_devices_give_the_same_rows(whole, on_eight_devices):
    for one, other in zip(whole.rows, json.loads(on_eight_devices(EIGHT).splitlines()[-1]), strict=True):
        assert one["objective"] == pytest.approx(other["objective"], rel=1e-9)
        assert one["status"] == other["status"]


@pytest.mark.slow
def test_two_processes_share_the_grid(whole, tmp_path):
    port = "43117"
    processes = [run_script(TWO, str(k), str(tmp_path), port) for k in range(2)]
    for process in processes:
        _, err = process.communicate(timeout=500)
        assert process.returncode == 0, err[-3000:]
    files = sorted(file.name for file in tmp_path.glob("rows*.jsonl"))
    assert files == ["rows-0.jsonl", "rows-1.jsonl"]
    shares = [len((tmp_path / name).read_text().splitlines()) for name in files]
    assert shares == [2, 2]
    gathered = jd.sweep(X, **GRID, directory=tmp_path)  # reads both, runs nothing
    for one, other in zip(whole.rows, gathered.rows, strict=True):
        assert one["objective"] == pytest.approx(other["objective"], rel=1e-9)
