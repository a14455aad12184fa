"""`jaxdict fit --stream` and `jaxdict certify --fresh`: which rows each number speaks of, and runs that go on."""

import json
import signal
import subprocess
import sys
import textwrap
import time

import matplotlib.image
import numpy as np
import pytest
from typer.testing import CliRunner

import jaxdict as jd
from jaxdict.commands import app
from jaxdict.commands.streaming import StreamBar
from jaxdict.results import load_solution
from jaxdict.streaming.job import StreamProgress

TRUE = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0][:5]


def planted(n, seed):
    luck = np.random.default_rng(seed)
    codes = (luck.uniform(size=(n, 5)) < 0.3) * luck.uniform(0.5, 1.5, (n, 5))
    return codes @ TRUE + 0.05 * luck.normal(size=(n, 6))


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Shards in half precision, fresh rows with their documents, and a result."""
    folder = tmp_path_factory.mktemp("stream")
    (folder / "acts").mkdir()
    for k, rows in enumerate(np.split(planted(1200, 1), 4)):
        np.save(folder / "acts" / f"part-{k}.npy", rows.astype(np.float16))
    np.save(folder / "fresh.npy", planted(400, 2))
    np.save(folder / "documents.npy", np.arange(400) // 8)
    call = ["fit", folder / "acts", "--stream", "--atoms", 5, "--lam", 0.1, "--out", folder / "out", "--json"]
    done = run(*call, "--passes", 40, "--held-out", 0.1, "--checkpoint", folder / "state")
    assert done.exit_code == 0, done.output
    return folder


def test_a_result_says_which_rows_its_numbers_speak_of(folder):
    saved = load_solution(folder / "out")
    assert saved.codes is None
    assert saved.dictionary.atoms.dtype == np.float64
    assert saved.meta["ended_well"]
    rows = saved.meta["population"]["rows"]
    assert 120 <= rows < 240
    assert saved.meta["samples"] + rows == 1200
    assert saved.meta["speaks_of"]["objective"] == f"{rows} rows kept aside"
    assert saved.meta["speaks_of"]["stationarity"] == f"the {1200 - rows} training rows"
    assert saved.meta["shards"] == [f"part-{k}.npy" for k in range(4)]
    assert matplotlib.image.imread(folder / "out" / "fit.png").shape[0] > 400
    assert set(saved.history["stage"]) == {0, 1}
    told = run("info", folder / "out")
    assert told.exit_code == 0
    assert f"{1200 - rows}" in told.stdout


@pytest.mark.slow
def test_the_same_command_again_finds_all_done(folder, tmp_path):
    call = ["fit", folder / "acts", "--stream", "--atoms", 5, "--lam", 0.1, "--passes", 40, "--held-out", 0.1]
    again = run(*call, "--checkpoint", folder / "state", "--out", tmp_path)
    assert again.exit_code == 0, again.output
    first, second = load_solution(folder / "out"), load_solution(tmp_path)
    np.testing.assert_array_equal(first.dictionary.atoms, second.dictionary.atoms)
    assert "rows kept aside" in again.stdout
    assert "fresh rows" in again.stdout
    other = run(*call, "--key", 1, "--checkpoint", folder / "state", "--out", tmp_path)
    assert other.exit_code == 2
    assert "kept by another run" in other.stderr


@pytest.mark.slow
def test_what_ends_without_either_ends_with_1(folder, tmp_path):
    call = ["fit", folder / "acts", "--stream", "--atoms", 5, "--lam", 0.1, "--out", tmp_path, "--float32"]
    done = run(*call, "--passes", 1, "--tol", 1e-12)
    assert done.exit_code == 1, done.output
    saved = load_solution(tmp_path)
    assert saved.dictionary.atoms.dtype == np.float32
    assert saved.meta["passes"] == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--checkpoint", "x"], "--checkpoint needs --stream"),
        (["--held-out", 0.1], "--held-out needs --stream"),
        (["--passes", 3], "--passes needs --stream"),
        (["--stream", "--sample", 3], "--sample cannot go with --stream"),
        (["--stream", "--max-steps", 3], "--max-steps cannot go with --stream"),
        (["--stream", "--allow-wide"], "--allow-wide cannot go with --stream"),
        (["--stream", "--held-out", 2], "held_out=2.0 makes no sense"),
    ],
)
def test_options_of_the_other_kind_are_refused(folder, tmp_path, options, told):
    done = run("fit", folder / "acts", "--atoms", 5, "--lam", 0.1, "--out", tmp_path / "out", *options)
    assert done.exit_code == 2
    assert told in done.stderr


@pytest.mark.slow
def test_certify_tells_what_is_proved_and_what_is_shown(folder):
    call = ["certify", folder / "out", folder / "acts", "--tol", 1e-2, "--fresh", folder / "fresh.npy"]
    told = run(*call)
    words = " ".join(told.stdout.split())
    assert "Proved of the 1200 rows" in words
    assert "Shown of rows like the 400 of" in words
    assert "independent, as treated" in words
    assert "root mean square defect" in words
    assert "local optimum of the population" in words
    done = json.loads(run(*call, "--documents", folder / "documents.npy", "--json").stdout)
    problem, dictionary = jd.Problem(lam=0.1), load_solution(folder / "out").dictionary
    wanted = jd.population.defects(problem, dictionary, np.load(folder / "fresh.npy"))
    assert done["fresh"]["population"]["rms"] == pytest.approx(float(wanted.rms), rel=1e-6)
    assert done["fresh"]["refutation"]["groups"] < done["fresh"]["refutation"]["rows"]
    assert done["fresh"]["rows_are"] == "of 50 documents"
    codes = jd.encode(problem, dictionary, planted(1200, 1).astype(np.float16).astype(float), tol=1e-13).codes
    seen = jd.certify(problem, dictionary, codes, planted(1200, 1).astype(np.float16).astype(float))
    assert done["certificate"]["objective"] == pytest.approx(float(seen.objective), rel=1e-9)


def test_what_certify_refuses(folder, tmp_path):
    np.save(tmp_path / "narrow.npy", planted(40, 3)[:, :5])
    np.save(tmp_path / "few.npy", np.zeros(3))
    for options, told in (
        (["--documents", folder / "documents.npy"], "give --fresh too"),
        (["--fresh", tmp_path / "narrow.npy"], "5 features where the result has 6"),
        (["--fresh", folder / "fresh.npy", "--documents", tmp_path / "few.npy"], "there are 400 rows"),
    ):
        done = run("certify", folder / "out", folder / "acts", *options)
        assert done.exit_code == 2, done.output
        assert told in done.stderr


def test_the_bar_shows_how_good_and_how_long(capsys):
    with StreamBar() as bar:
        bar.bar.disable = True
        bar(StreamProgress("passes", 3, 12, 5000, 0.25, 0.001, 75.0, jd.Dictionary(TRUE)))
        task = bar.bar.tasks[0]
    assert task.fields["numbers"] == "5,000 rows  objective 0.25 +- 0.001"
    assert task.fields["left"] == "1:15 left at most"
    assert task.completed == 0.25


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_reached_and_the_same_command_goes_on(folder, tmp_path):
    program = """
        import sys
        from pathlib import Path
        from jaxdict.commands import streaming
        from jaxdict.streaming import job
        job.TELL_SECONDS = 0
        told, at = streaming.StreamBar.__call__, Path(sys.argv[-1])
        def call(self, progress):
            told(self, progress)
            at.touch()
        streaming.StreamBar.__call__ = call
        sys.argv = ["jaxdict", *sys.argv[1:-1]]
        from jaxdict.cli import main
        main()
    """
    call = ["fit", folder / "acts", "--stream", "--atoms", 5, "--lam", 0.1, "--out", tmp_path / "out", "--tol", "1e-30"]
    call += ["--held-out", 0, "--passes", 1000000, "--checkpoint", tmp_path / "state", tmp_path / "at work"]
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, call)], stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "at work").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    lines = [line for line in err.splitlines() if line.startswith("jaxdict:")]
    assert len(lines) == 1
    assert "the same command goes on" in lines[0]
    saved = load_solution(tmp_path / "out")
    assert saved.meta["message"].startswith("interrupted")
    assert np.allclose(np.linalg.norm(saved.dictionary.atoms, axis=1), 1)
