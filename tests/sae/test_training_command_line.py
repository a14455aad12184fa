"""`jaxdict train`: flags, call and record are one; what it writes is what training gave, and can be audited."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from typer.testing import CliRunner

import jaxdict as jd
from jaxdict.commands import app
from jaxdict.commands.training import TrainConfig
from jaxdict.files import Shards
from jaxdict.sae import trainers

draw = np.random.default_rng(0)
ATOMS = np.linalg.qr(draw.normal(size=(6, 6)))[0][:5]
X = (
    (draw.uniform(size=(900, 5)) < 0.3) * draw.uniform(0.5, 1.5, (900, 5)) @ ATOMS
    + 0.02 * draw.normal(size=(900, 6))
    + 1
).astype("f4")
SIZES = ("--d-sae", 8, "--steps", 150, "--batch-size", 64, "--learning-rate", 1e-2, "--key", 3)


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def acts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("acts")
    for part in range(3):
        np.save(folder / f"part-{part}.npy", X[300 * part : 300 * part + 300])
    return folder


def test_a_folder_that_loads_to_what_train_gives(acts, tmp_path):
    names = ("--model", "gpt2", "--hook", "blocks.3.hook_resid_pre")
    done = run("train", acts, "--out", tmp_path / "sae", "--lam", 0.05, *SIZES, *names, "--json")
    assert done.exit_code == 0, done.output
    told, kept = json.loads(done.stdout), json.loads((tmp_path / "sae" / "training.json").read_text())
    assert told == kept
    assert {field.name for field in dataclasses.fields(TrainConfig)} < set(kept)
    assert (kept["learning_rate"], kept["key"], kept["rows"], kept["lam_warm_up"]) == (0.01, 3, 900, 0)
    sae = jd.sae.load(tmp_path / "sae")
    assert (sae.lam, sae.metadata.model, sae.metadata.hook) == (0.05, "gpt2", "blocks.3.hook_resid_pre")
    rows = Shards([X[:300], X[300:600], X[600:]])
    options = {"steps": 150, "batch_size": 64, "learning_rate": 1e-2}
    own = jd.sae.train(rows, 8, key=jax.random.key(3), lam=0.05, **options)
    np.testing.assert_allclose(sae.W_dec, own.W_dec, rtol=1e-6)
    r = X - np.asarray(sae(X))
    assert kept["explained_variance"] == pytest.approx(1 - np.sum(r**2) / np.sum((X - X.mean(0)) ** 2), rel=1e-4)
    assert kept["explained_variance"] > 0.6
    assert kept["l0"] == pytest.approx(np.mean(np.sum(np.asarray(sae.encode(X)) != 0, axis=1)))


JUMPY = trainers.JumpReLU(bandwidth=0.2, threshold=0.05)
ANNEALED = trainers.PAnneal(p_end=0.5)
FLAGS = {
    ("--lam", 0.05, "--lam-warm-up", 20, "--no-scaled", "--dead-steps", 7): {
        **{"lam": 0.05, "lam_warm_up": 20, "scaled": False, "dead_steps": 7}
    },
    ("--architecture", "jumprelu", "--lam", 0.05, "--bandwidth", 0.2, "--threshold", 0.05): {
        "lam": 0.05,
        "architecture": JUMPY,
    },
    ("--architecture", "p_anneal", "--lam", 0.05, "--p-end", 0.5): {"lam": 0.05, "architecture": ANNEALED},
    ("--architecture", "topk", "--k", 2, "--auxiliary", 1, "--dead-steps", 5): {
        **{"k": 2, "architecture": trainers.TopK(auxiliary=1.0), "dead_steps": 5}
    },
    ("--architecture", "matryoshka", "--k", 2, "--group-sizes", "2,6"): {
        **{"k": 2, "architecture": trainers.Matryoshka(group_sizes=(2, 6))}
    },
}


@pytest.mark.parametrize("flags", FLAGS)
def test_each_flag_is_the_calls_argument(acts, tmp_path, flags):
    sizes = ("--d-sae", 8, "--epochs", 4, "--batch-size", 64, "--learning-rate", 1e-2, "--key", 3)
    done = run("train", acts, "--out", tmp_path, *sizes, *flags)
    assert done.exit_code == 0, done.output
    assert "explained" in done.stdout
    rows = Shards([X[:300], X[300:600], X[600:]])
    options = {"key": jax.random.key(3), "epochs": 4, "batch_size": 64, "learning_rate": 1e-2}
    own = jd.sae.train(rows, 8, **options, **FLAGS[flags])
    np.testing.assert_allclose(jd.sae.load(tmp_path).W_dec, own.W_dec, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--architecture", "gate", "--lam", 1), "--architecture gate is unknown; use one of standard, topk,"),
        (("--lam", 0.1, "--bandwidth", 0.1), "--bandwidth: a standard SAE has no such number"),
        (("--architecture", "topk"), "k is None"),
        (("--architecture", "matryoshka", "--k", 2, "--group-sizes", "2,x"), "--group-sizes '2,x'"),
        (("--architecture", "matryoshka", "--k", 2, "--group-sizes", "2,3"), "whose sum is d_sae = 8"),
        (("--lam", 0.1, "--epochs", 2), "steps is 150 and epochs is 2"),
    ],
)
def test_bad_flags_are_one_line(acts, tmp_path, flags, message):
    done = run("train", acts, "--out", tmp_path / "sae", *SIZES, *flags)
    assert done.exit_code == 2
    (line,) = done.stderr.strip().splitlines()
    assert message in line
    assert not (tmp_path / "sae").exists()


def test_a_checkpoint_is_gone_on_from(acts, tmp_path):
    call = (
        "train",
        acts,
        "--out",
        tmp_path / "sae",
        "--lam",
        0.05,
        *SIZES,
        "--checkpoint",
        tmp_path / "state",
        "--json",
    )
    first, second = run(*call), run(*call)
    assert first.exit_code == second.exit_code == 0
    assert list((tmp_path / "state").glob("state-*.npz"))
    drop = {"seconds"}
    first, second = (
        {key: value for key, value in json.loads(done.stdout).items() if key not in drop} for done in (first, second)
    )
    assert first == second
    given = ("--lam", 0.06, *SIZES, "--checkpoint", tmp_path / "state")
    other = run("train", acts, "--out", tmp_path / "sae", *given)
    assert other.exit_code == 2
    assert "another run" in other.stderr
