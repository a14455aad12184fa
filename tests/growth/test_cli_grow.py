"""`jaxdict grow`: widths in folders of their own, the tree as data, text, page and picture, labels and documents."""

import json

import jax
import matplotlib.image
import numpy as np
import pytest
from planted_trees import planted_tree
from typer.testing import CliRunner

import jaxdict as jd
from jaxdict.commands import app
from jaxdict.commands.growing import GrowthBar
from jaxdict.growth import GrowthProgress
from jaxdict.results import load_solution

pytestmark = pytest.mark.slow

PLANTED = planted_tree(0)


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Activations, labels, and what growth made of them."""
    folder = tmp_path_factory.mktemp("grow")
    np.save(folder / "acts.npy", PLANTED.X)
    (folder / "labels.json").write_text(json.dumps([f"leaf{k}" for k in PLANTED.leaf]))
    np.save(folder / "documents.npy", np.arange(600) // 10)
    call = ["grow", folder / "acts.npy", "--widths", "2,4,8", "--lam", 0.1, "--no-offset", "--held-out", 0.2]
    call += ["--labels", folder / "labels.json", "--documents", folder / "documents.npy", "--out", folder / "out"]
    done = run(*call, "--tol", 1e-4)
    assert done.exit_code == 0, done.output
    assert "8 atoms; the last width" in " ".join(done.stdout.split())
    return folder


def test_a_least_gain_ends_growth(folder):
    """No width gains nine tenths of the objective: the first one is taken, though the next is better beyond doubt."""
    call = ["grow", folder / "acts.npy", "--widths", "2,4", "--lam", 0.1, "--no-offset", "--held-out", 0.2, "--json"]
    for more, width in (((), 4), (("--least-gain", 0.9), 2)):
        found = json.loads(run(*call, "--out", folder / f"ends at {width}", *more).stdout)
        assert found["steps"][found["best"]]["width"] == width


def test_every_width_is_a_result_that_certify_reads(folder):
    for width in (2, 4, 8):
        saved = load_solution(folder / "out" / f"width-{width}")
        assert saved.dictionary.atoms.shape == (width, 64)
        assert saved.codes is None
    taken = load_solution(folder / "out")
    np.testing.assert_array_equal(taken.dictionary.atoms, saved.dictionary.atoms)
    assert 400 < len(taken.rows) < 600
    done = run("certify", folder / "out", folder / "acts.npy", "--tol", 1e-3)
    assert done.exit_code == 0, done.output
    assert f"{len(taken.rows)} rows" in " ".join(done.stdout.split())


def test_the_tree_is_data_text_page_and_picture(folder):
    out = folder / "out"
    document = json.loads((out / "growth.json").read_text())
    assert [step["width"] for step in document["steps"]] == [2, 4, 8]
    assert document["fresh_rows"] + document["rows"] == 600
    assert document["steps"][1]["gain"] > 3 * document["steps"][1]["gain_error"] > 0
    atoms = document["tree"]["atoms"]
    assert [atom["parent"] for atom in atoms[:2]] == [None, None]
    assert all(atom["parent"] is not None for atom in atoms[2:])
    assert all(label.startswith("leaf") for atom in atoms for label in atom["labels"])
    assert (out / "tree.txt").read_text().count("leaf") >= 8
    page = (out / "tree.html").read_text()
    assert page.count("<details") + page.count('class="leaf"') == len(atoms)
    assert "http" not in page
    assert matplotlib.image.imread(out / "growth.png").shape[0] > 400


@pytest.mark.slow
def test_json_and_streams(folder, tmp_path):
    call = ["grow", folder / "acts.npy", "--widths", "2,4", "--lam", 0.1, "--out", tmp_path, "--json", "--stream"]
    done = run(*call)
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["bound"] is None
    assert document["fresh_bound"] > 0
    assert [step["width"] for step in document["steps"]] == [2, 4]
    assert load_solution(tmp_path).rows is None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--widths", "4,x"], "--widths '4,x' is not understood"),
        (["--widths", "4,2"], "ascending whole numbers"),
        (["--widths", "4", "--stream", "--sample", 100], "--sample cannot go with --stream"),
        (["--widths", "4", "--held-out", 2], "held_out=2.0 makes no sense"),
    ],
)
def test_what_cannot_be_is_one_line(folder, tmp_path, options, told):
    done = run("grow", folder / "acts.npy", "--lam", 0.1, "--out", tmp_path / "out", *options)
    assert done.exit_code == 2
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_bar_shows_the_width_at_work(folder):
    grown = jd.grow(jd.Problem(lam=0.1, offset=False), PLANTED.X, (2,), key=jax.random.key(0), held_out=0.2)
    with GrowthBar() as bar:
        bar.bar.disable = True
        bar(GrowthProgress(grown.steps, 4, 8, None))
        task = bar.bar.tasks[0]
    assert task.fields["stage"] == "4 atoms"
    assert "2 atoms: " in task.fields["numbers"]
    assert "kept aside" in task.fields["numbers"]
    assert task.completed == 0.5
