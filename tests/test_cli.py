"""The command line: it does its jobs, refuses bad input in one line with exit code 2, and speaks JSON when asked."""

import json
import subprocess
import sys
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
from typer.testing import CliRunner

import jaxdict as jd
from jaxdict.commands import app, solving
from jaxdict.commands.console import FitProgress
from jaxdict.commands.demonstration import plain_words, scaled, token_examples
from jaxdict.commands.inspection import activation_facts
from jaxdict.datasets import load as load_dataset
from jaxdict.results import load_solution

SAMPLES, FEATURES, ATOMS, LAM = 60, 4, 5, 0.3


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def activations(seed=0, n=SAMPLES, d=FEATURES):
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(6, d))
    truth /= np.linalg.norm(truth, axis=1, keepdims=True)
    codes = rng.exponential(size=(n, 6)) * (rng.random((n, 6)) < 0.3)
    return codes @ truth + 0.05 * rng.normal(size=(n, d))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """One fit for all tests: its folder, its activations and what it printed."""
    folder = tmp_path_factory.mktemp("cli")
    np.save(folder / "acts.npy", activations())
    args = ["fit", folder / "acts.npy", "--atoms", ATOMS, "--lam", LAM, "--out", folder / "out", "--json"]
    return SimpleNamespace(acts=folder / "acts.npy", out=folder / "out", args=args, result=run(*args))


def test_fit_saves_a_certified_result_and_prints_one_object(fitted):
    assert fitted.result.exit_code == 0, fitted.result.output
    printed = json.loads(fitted.result.stdout)
    assert printed["stationary"] is True
    assert printed["certificate"]["stationarity"]["worst"] <= 1e-6
    saved = load_solution(fitted.out)
    assert saved.dictionary.atoms.shape == (ATOMS, FEATURES)
    assert saved.dictionary.atoms.dtype == np.float64
    assert saved.meta["objective"] == printed["objective"]
    again = jd.objective(saved.problem, saved.dictionary, saved.codes, np.load(fitted.acts))
    assert float(again) == pytest.approx(printed["objective"], rel=1e-12)


def test_fit_draws_a_figure(fitted):
    assert matplotlib.image.imread(fitted.out / "fit.png").shape[0] > 500
    assert "<svg" in (fitted.out / "fit.svg").read_text()


@pytest.mark.slow
def test_sparse_fits_form_no_dense_codes(fitted, tmp_path, monkeypatch):
    asked = {}

    def seen(*args, **options):
        asked.update(options)
        return jd.fit(*args, **options)

    monkeypatch.setattr(solving, "fit", seen)
    result = run("fit", fitted.acts, "--atoms", ATOMS, "--lam", LAM, "--out", tmp_path, "--json", "--sparse")
    assert result.exit_code == 0, result.output
    assert asked["sparse"] is True
    assert isinstance(load_solution(tmp_path).codes, jd.SparseCodes)
    assert json.loads(result.stdout)["objective"] == pytest.approx(
        json.loads(fitted.result.stdout)["objective"], rel=1e-6
    )
    refused = run("fit", fitted.acts, "--atoms", ATOMS, "--lam", LAM, "--out", tmp_path, "--sparse", "--stream")
    assert refused.exit_code == 2
    assert "--sparse" in refused.output


@pytest.mark.slow
def test_fit_in_float32_on_a_sample_without_offset(fitted, tmp_path):
    args = ["--float32", "--sample", 40, "--no-offset", "--json"]
    result = run("fit", fitted.acts, "--atoms", ATOMS, "--lam", LAM, "--out", tmp_path, *args)
    assert result.exit_code == 0, result.output
    saved = load_solution(tmp_path)
    assert saved.dictionary.atoms.dtype == np.float32
    assert len(saved.rows) == 40
    assert not saved.problem.offset
    # The same rows, now in float64, where the atoms of the float32 result are no longer exactly on the sphere.
    certified = run("certify", tmp_path, fitted.acts, "--tol", "1e-3", "--json")
    assert certified.exit_code == 0, certified.output
    assert certified.stderr == ""


def test_certify_agrees_and_fails_what_is_not_stationary(fitted):
    good = run("certify", fitted.out, fitted.acts, "--json")
    assert good.exit_code == 0, good.output
    before = json.loads(fitted.result.stdout)["certificate"]["stationarity"]["worst"]
    assert json.loads(good.stdout)["certificate"]["stationarity"]["worst"] == pytest.approx(before, abs=1e-9)
    curved = run("certify", fitted.out, fitted.acts, "--curvature", "--json")
    assert np.isfinite(json.loads(curved.stdout)["certificate"]["curvature"]["eigenvalue"])
    strict = run("certify", fitted.out, fitted.acts, "--tol", "1e-30")
    assert strict.exit_code == 1
    assert "fails" in strict.stdout


def test_certify_refutes_other_activations(fitted, tmp_path):
    np.save(tmp_path / "other.npy", activations(seed=1))
    other = run("certify", fitted.out, tmp_path / "other.npy")
    assert other.exit_code == 1
    assert "not the values that the result was fitted to" in other.stderr
    np.save(tmp_path / "short.npy", activations(n=30))
    short = run("certify", fitted.out, tmp_path / "short.npy")
    assert short.exit_code == 2
    assert "does not fit" in one_line(short.stderr)


def test_info_on_a_result_and_on_activations(fitted):
    result = json.loads(run("info", fitted.out, "--json").stdout)
    assert (result["kind"], result["atoms"], result["lam"]) == ("result", ATOMS, LAM)
    acts = json.loads(run("info", fitted.acts, "--json").stdout)
    assert (acts["samples"], acts["features"], acts["dtype"]) == (SAMPLES, FEATURES, "float64")
    assert acts["lam_max"]["with_offset"] == pytest.approx(float(jd.lam_max(np.load(fitted.acts))), rel=1e-9)
    for target in (fitted.out, fitted.acts):
        shown = run("info", target)
        assert shown.exit_code == 0
        assert "lam" in shown.stdout


def test_info_counts_oddities(monkeypatch):
    X = activations(n=50).astype(np.float32)
    X[:, 2] = 1
    X[3] = X[4]
    X[7, 0] = np.nan
    monkeypatch.setattr("jaxdict.commands.inspection.ROWS_PER_BLOCK", 7)
    facts = activation_facts(X)
    assert (facts["rows_with_nan_or_infinity"], facts["first_such_row"]) == (1, 7)
    assert (facts["constant_columns"], facts["distinct_rows"], facts["rank"]) == (1, 49, 3)


def one_line(stderr: str) -> str:
    lines = stderr.strip().splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("jaxdict: error: ")
    return lines[0]


def save(path, values):
    np.save(path, values)
    return path


@pytest.mark.parametrize(
    ("make", "extra", "words"),
    [
        (lambda f: save(f / "a.npy", np.full((30, 4), np.nan)), [], "first in row 0"),
        (lambda f: save(f / "a.npy", activations().T.copy()), [], "transposed? (--allow-wide if it is meant so)"),
        (lambda f: save(f / "a.npy", np.ones((30, 4), int)), [], "dtype int64"),
        (lambda f: save(f / "a.npy", np.ones((2, 3, 4))), ["--d-in", "5"], "rows of 4 or 12 numbers, not of 5"),
        (lambda f: save(f / "a.npy", np.repeat(activations(n=3), 9, 0)), [], "the 3 distinct samples"),
        (lambda f: f / "none.npy", [], "no such file"),
        (lambda f: save(f / "a.npy", activations()), ["--lam", "0"], "lam=0 makes no sense"),
        (lambda f: save(f / "a.npy", activations()), ["--lam", "-1"], "lam is negative"),
        (lambda f: save(f / "a.npy", activations()), ["--lam", "nan"], "lam=nan"),
        (lambda f: save(f / "a.npy", activations()), ["--lam", "99"], "all codes would be zero, lam_max ="),
        (lambda f: save(f / "a.npy", activations()), ["--atoms", "0"], "n_atoms=0"),
        (lambda f: save(f / "a.npy", activations()), ["--atoms", "many"], "Invalid value for '--atoms'"),
        (lambda f: save(f / "a.npy", activations()), ["--sample", "0"], "--sample 0"),
        (lambda f: save(f / "a.npy", activations()), ["--start", "zeros"], "zeros"),
        (lambda f: save(f / "a.npy", activations()), ["--metric", "none.npy"], "none.npy: No such file"),
        (lambda f: save(f / "a.npy", activations()), ["--colour"], "No such option: --colour"),
    ],
)
def test_bad_input_to_fit_is_one_line_and_exit_code_2(tmp_path, make, extra, words):
    args = ["--atoms", ATOMS, "--lam", LAM]
    result = run("fit", make(tmp_path), *args, "--out", tmp_path / "out", *extra)
    assert result.exit_code == 2, result.output
    assert words in one_line(result.stderr)
    assert result.stdout == ""
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_unwritable_output_is_refused_before_compute(fitted, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "jaxdict.commands.solving.fit", lambda *_, **__: pytest.fail("computed although the output cannot be written")
    )
    (tmp_path / "file").write_text("in the way")
    for verb in (["fit", fitted.acts, "--atoms", 3, "--lam", LAM], ["demo"]):
        result = run(*verb, "--out", tmp_path / "file")
        assert result.exit_code == 2
        assert "cannot write results there" in one_line(result.stderr)


def test_bad_folders_and_usage(tmp_path):
    for args, words in [
        (["certify", tmp_path, tmp_path / "a.npy"], "solution.safetensors: no such file"),
        (["info", tmp_path], "holds no activations"),
        (["fit", "a.npy"], "Missing option"),
        (["nothing"], "No such command"),
    ]:
        result = run(*args)
        assert result.exit_code == 2
        assert words in one_line(result.stderr)
    assert run().exit_code == 0
    assert run("fit", "--help").exit_code == 0


PACKAGES = ["typer", *(pytest.param(name, marks=pytest.mark.slow) for name in ("matplotlib", "rich", "safetensors"))]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_missing_extra_is_named(package):
    """In a fresh process in which the package cannot be imported."""
    program = f"import sys; sys.modules[{package!r}] = None; from jaxdict.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip() == f'jaxdict: error: the command line needs {package}: pip install "jaxdict[cli]"'


@pytest.mark.slow
def test_demo_tells_what_is_proved_and_what_is_not(tmp_path):
    result = run("demo", "--rows", 80, "--atoms", 6, "--lam", 0.6, "--out", tmp_path / "demo")
    assert result.exit_code == 0, result.output
    told = " ".join(result.stdout.split())
    for words in ("What this proves", "What it does not prove", "No small change", "No dictionary of any width", "%"):
        assert words in told
    assert (tmp_path / "demo" / "fit.png").exists()
    X = np.load(tmp_path / "demo" / "activations.npy")
    assert np.mean(np.sum(X**2, axis=1)) == pytest.approx(1)
    assert np.allclose(X, scaled(load_dataset().X[np.linspace(0, 4095, 80).round().astype(int)]))
    assert run("certify", tmp_path / "demo", tmp_path / "demo" / "activations.npy").exit_code == 0


def test_words_of_a_refuted_point_claim_nothing():
    refuted = SimpleNamespace(
        stationarity=SimpleNamespace(worst=0.1), wide_bound=0.2, objective=0.3, global_gap=0.1,
        directional_derivative=-0.5, is_stationary=lambda tol: False,
    )  # fmt: skip
    proved, unproved = plain_words(refuted, 1e-6, 5)
    assert len(proved) == 1
    assert "at most 50% above" in proved[0]
    assert "local optimum" in unproved[0]


def test_token_examples_rank_tokens_and_skip_dead_atoms():
    codes = np.array([[3.0, 0, 0], [2.0, 0, 0], [1.0, 0, 5.0]])
    examples = token_examples(codes, np.array(["if", "if", "else"]))
    assert [example.index for example in examples] == [0, 2]
    assert examples[0].tokens == ["if ×2", "else"]
    assert examples[1].usage == pytest.approx(1 / 3)


def test_progress_share_follows_steps_and_decades():
    progress = FitProgress(tol=1e-6, quiet=True)
    for step, distance, share in [(1, 1.0, 0.01), (2, 1e-3, 0.5), (3, float("nan"), 0.5), (80, 1e-3, 0.8)]:
        progress(SimpleNamespace(step=step, max_steps=100, objective=1.0, stationarity=distance, stage="x"))
        assert progress.share == pytest.approx(share)
