"""The verbs audit, polish and sweep: files written, exit codes that mean something, one line on bad input."""

import json

import matplotlib.image
import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

import jaxdict as jd
from jaxdict.commands import app

LAM = 0.15


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Activations as shards, labels, and an SAE whose decoder holds a hierarchy."""
    folder = tmp_path_factory.mktemp("review")
    rng = np.random.default_rng(0)
    atoms = np.linalg.qr(rng.normal(size=(8, 8)))[0][:6]
    on = rng.random((1200, 6)) < 0.25
    on[:, 1] &= on[:, 0]
    X = ((on * rng.uniform(0.8, 1.6, on.shape)) @ atoms + 0.01 * rng.normal(size=(1200, 8))).astype(np.float16)
    (folder / "acts").mkdir()
    np.save(folder / "acts" / "a.npy", X[:150])
    np.save(folder / "acts" / "b.npy", X[150:])
    (folder / "labels.json").write_text(json.dumps([f"word{n}" for n in range(1200)]))
    jd.sae.save(jd.Dictionary(atoms.astype(np.float32), np.zeros(8, np.float32)), folder / "sae", lam=LAM)
    return folder


@pytest.fixture(scope="module")
def audited(folder):
    options = ["--labels", folder / "labels.json", "--exact-samples", 200, "--steps", 10, "--json"]
    return run("audit", folder / "sae", folder / "acts", "--out", folder / "report", *options)


def test_audit_writes_a_page_and_a_document(audited, folder):
    assert audited.exit_code == 0, audited.output
    printed = json.loads(audited.stdout)
    document = json.loads((folder / "report" / "audit.json").read_text())
    assert printed["measures"] == {m["name"]: m["value"] for m in document["measures"]}
    assert document["data"]["rows"] == 1200
    assert document["sae"]["path"] == str(folder / "sae")
    assert (document["pairs"][0]["parent"], document["pairs"][0]["child"]) == (0, 1)
    page = (folder / "report" / "audit.html").read_text()
    assert document["verdict"][0].partition(" What to do")[0].replace("+-", "±") in page
    assert "word" in page
    # Nothing else is left behind: the pass's checkpoint is gone.
    assert sorted(file.name for file in (folder / "report").iterdir()) == ["audit.html", "audit.json"]


@pytest.mark.slow
def test_audit_fails_where_it_was_asked_to(folder):
    done = run(
        "audit", folder / "sae", folder / "acts", "--out", folder / "r2", "--exact-samples", 200, "--steps", 0,
        "--fail-on", "explained_variance<0.5", "--fail-on", "dead_features<1",
    )  # fmt: skip
    assert done.exit_code == 1, done.output
    assert "dead_features is 0: fails on dead_features<1" in done.output
    assert "explained_variance is" not in done.output
    assert (folder / "r2" / "audit.html").exists()


@pytest.mark.slow
def test_documents_and_minutes_of_an_audit(folder):
    np.save(folder / "documents.npy", np.repeat(np.arange(40), 30))
    options = [
        "--documents",
        folder / "documents.npy",
        "--minutes",
        0.02,
        "--exact-samples",
        100,
        "--steps",
        0,
        "--json",
    ]
    done = run("audit", folder / "sae", folder / "acts", "--out", folder / "grouped", *options)
    assert done.exit_code == 0, done.output
    split = json.loads((folder / "grouped" / "audit.json").read_text())["split"]
    assert split["documents"] == 40
    assert split["rows"] > 100  # as many as fit the time, not the sample
    assert "40 documents" in split["sentence"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sae", "acts", "--minutes", "0"], "positive number of minutes"),
        (["sae", "acts", "--documents", "labels.json"], "not a .npy file"),
        (["sae", "acts", "--documents", "narrow.npy"], "there are 1200 rows"),
        (["missing", "acts"], "missing"),
        (["sae", "none.npy"], "none.npy"),
        (["sae", "narrow.npy"], "d_in = 8"),
        (["sae", "nan.npy"], "NaN"),
        (["sae", "acts", "--fail-on", "loss<1"], "no measure 'loss'"),
        (["sae", "acts", "--lam", "-1"], "positive"),
        (["sae", "acts", "--labels", "short.json"], "one label a row"),
        (["labels.json", "acts"], "labels.json"),
    ],
)
def test_bad_input_of_an_audit_is_one_line(folder, arguments, message):
    np.save(folder / "narrow.npy", np.ones((20, 3), np.float32))
    np.save(folder / "nan.npy", np.full((20, 8), np.nan, np.float32))
    (folder / "short.json").write_text('["a"]')
    literal = [a.startswith("-") or "<" in a or a.isdigit() for a in arguments]
    paths = [a if kept else folder / a for a, kept in zip(arguments, literal, strict=True)]
    done = run("audit", *paths, "--out", folder / "bad")
    assert done.exit_code == 2, done.output
    lines = [line for line in done.output.splitlines() if line.strip()]
    assert len(lines) == 1, done.output
    assert lines[0].startswith("jaxdict: error:")
    assert message in lines[0]


@pytest.mark.slow
def test_polish_saves_a_better_sae(folder):
    done = run("polish", folder / "sae", folder / "acts", "--out", folder / "better", "--json")
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert printed["better"]
    assert printed["after"] < printed["before"]
    assert printed["sae_gain"]["gain"] > 3 * printed["sae_gain"]["standard_error"]
    assert printed["rows"]["fitted"] + printed["rows"]["aside"] + printed["rows"]["judged"] == 1200
    assert printed["changes"][0]["feature"] == 1
    better = jd.sae.load(folder / "better")
    assert better.lam == pytest.approx(LAM)


@pytest.mark.slow
def test_polish_says_so_where_nothing_better_is_shown_and_saves_nothing(folder):
    np.save(folder / "of.npy", np.repeat(np.arange(30), 40))
    options = ["--sample", 90, "--documents", folder / "of.npy", "--steps", 1, "--encoder", "tied"]
    done = run("polish", folder / "sae", folder / "acts", "--out", folder / "none", *options)
    assert done.exit_code == 1, done.output
    told = " ".join(done.output.split())
    assert "nothing better is shown: the SAE is returned as it was" in told
    assert "of 8 documents" in told
    assert "nothing is saved" in told
    assert not (folder / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sae", "acts", "--sample", "5000"], "--sample 5000 does not lie between 1 and the 1200 rows"),
        (["sae", "acts", "--documents", "narrow.npy"], "there are 1200 rows"),
        (["sae", "acts", "--encoder", "best"], "encoder='best'"),
        (["sae", "nan.npy"], "of X holds NaN or infinity"),
        (["groupmax", "acts"], "'groupmax' has no architecture in SAELens"),
    ],
)
def test_bad_input_of_polish_is_one_line(folder, arguments, message):
    np.save(folder / "narrow.npy", np.ones((20, 3), np.float32))
    np.save(folder / "nan.npy", np.full((60, 8), np.nan, np.float32))
    tensors = {
        "encoder.weight": np.ones((4, 8)),
        "encoder.bias": np.ones(4),
        "W_dec": np.ones((4, 8)),
        "b_dec": np.ones(8),
    }
    settings = {"activation": "groupmax", "num_latents": 4, "k": 2, "d_in": 8, "transcode": False}
    files = {
        "sae.safetensors": {name: value.astype(np.float32) for name, value in tensors.items()},
        "cfg.json": settings,
    }
    (folder / "groupmax").mkdir(exist_ok=True)
    save_file(files["sae.safetensors"], folder / "groupmax" / "sae.safetensors")
    (folder / "groupmax" / "cfg.json").write_text(json.dumps(settings))
    literal = [a.startswith("-") or a.isdigit() or a == "best" for a in arguments]
    paths = [a if kept else folder / a for a, kept in zip(arguments, literal, strict=True)]
    done = run("polish", *paths, "--out", folder / "no better")
    assert done.exit_code == 2, done.output
    lines = [line for line in done.output.splitlines() if line.strip()]
    assert len(lines) == 1, done.output
    assert message in lines[0]
    assert not (folder / "no better").exists()


@pytest.mark.slow
def test_sweep_writes_rows_and_a_figure_and_resumes(folder):
    options = ["--lams", "0.3,0.6", "--atoms", "6", "--tol", "1e-5", "--out", folder / "grid", "--json"]
    done = run("sweep", folder / "acts", *options)
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["rows"]
    assert [row["lam"] for row in rows] == [0.3, 0.6]
    assert all(row["stationarity"] <= 1e-5 for row in rows)
    assert matplotlib.image.imread(folder / "grid" / "sweep.png").shape[1] > 1000
    before = (folder / "grid" / "rows.jsonl").read_text()
    assert run("sweep", folder / "acts", *options).exit_code == 0
    assert (folder / "grid" / "rows.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lams", "a,b", "--atoms", "5"], "--lams 'a,b'"),
        (["--lams", "0.1,-1", "--atoms", "5"], "positive"),
        (["--lams", "0.1", "--atoms", "five"], "--atoms 'five'"),
        (["--lams", "0.1", "--atoms", "0"], "0"),
    ],
)
def test_bad_grids_are_refused_in_one_line(folder, options, message):
    done = run("sweep", folder / "acts", *options, "--out", folder / "bad")
    assert done.exit_code == 2, done.output
    assert len(done.output.strip().splitlines()) == 1
    assert message in done.output
