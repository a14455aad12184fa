"""How every verb ends: 0 done, 1 a check that was asked for failed, 2 bad input, 130 Ctrl-C; one line where it is not 0."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

import jaxdict as jd
from jaxdict.commands import app
from jaxdict.results import load_solution

RNG = np.random.default_rng(0)
ATOMS = np.linalg.qr(RNG.normal(size=(6, 6)))[0][:5]
X = np.where(RNG.random((120, 5)) < 0.3, RNG.uniform(0.5, 2, (120, 5)), 0) @ ATOMS + 0.05 * RNG.normal(size=(120, 6))
SLOW_SWEEP = pytest.param("sweep", marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Activations, and an SAE with the true atoms."""
    folder = tmp_path_factory.mktemp("endings")
    np.save(folder / "acts.npy", X)
    jd.sae.save(jd.Dictionary(ATOMS.astype(np.float32), np.zeros(6, np.float32)), folder / "sae", lam=0.1)
    return folder


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def verbs(folder, out):
    """A call of every verb that computes, and what stops it before it can be done."""
    return {
        "fit": (["fit", folder / "acts.npy", "--atoms", 5, "--lam", 0.1, "--out", out], ["--max-steps", 1]),
        "sweep": (["sweep", folder / "acts.npy", "--atoms", 5, "--lams", "0.1,9", "--out", out], ["--max-steps", 1]),
        "polish": (["polish", folder / "sae", folder / "acts.npy", "--out", out], []),
    }


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["fit", SLOW_SWEEP])
def test_what_is_not_stationary_is_kept_and_ends_with_1(folder, tmp_path, verb):
    call, stop = verbs(folder, tmp_path / "out")[verb]
    done = run(*call, *stop)
    assert done.exit_code == 1, done.output
    assert {"fit": "solution.safetensors", "sweep": "rows.jsonl"}[verb] in {
        file.name for file in (tmp_path / "out").iterdir()
    }


@pytest.mark.slow
def test_a_sweep_ends_with_0_where_every_run_converged(folder, tmp_path):
    assert (
        run("sweep", folder / "acts.npy", "--atoms", 5, "--lams", "0.2", "--tol", 1e-4, "--out", tmp_path).exit_code
        == 0
    )


def test_polish_of_a_signed_sae_is_refused(folder, tmp_path):
    sae = jd.sae.load(folder / "sae")
    signed = jd.sae.SAE(sae.W_enc, jnp.zeros(5), sae.W_dec, sae.b_dec, activation=jd.sae.Activation("abstopk", k=2))
    jd.sae.save(signed, tmp_path / "signed")
    done = run("polish", tmp_path / "signed", folder / "acts.npy", "--lam", 0.1, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "signed=True" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_dictionary_gap_that_was_not_measured_fails_its_condition(folder, tmp_path):
    asked = [
        "audit",
        folder / "sae",
        folder / "acts.npy",
        "--out",
        tmp_path,
        "--steps",
        0,
        "--fail-on",
        "dictionary_share>0.9",
    ]
    done = run(*asked)
    assert done.exit_code == 1, done.output
    assert "dictionary_share was not measured: fails on dictionary_share>0.9" in done.output


def test_shards_are_told_in_the_order_of_their_rows(tmp_path):
    (tmp_path / "acts").mkdir()
    for k in range(12):
        np.save(tmp_path / "acts" / f"part-{k}.npy", X[10 * k : 10 * k + 10])
    told = json.loads(run("info", tmp_path / "acts", "--json").stdout)["shards_in_order"]
    assert told == [f"part-{k}.npy" for k in range(12)]
    assert ", ".join(told[:3]) in run("info", tmp_path / "acts").stdout
    call = ["fit", tmp_path / "acts", "--atoms", 5, "--lam", 0.1, "--out", tmp_path / "out", "--max-steps", 1, "--json"]
    assert json.loads(run(*call).stdout)["shards"] == told
    assert load_solution(tmp_path / "out").meta["shards"] == told
    assert json.loads(run("info", tmp_path / "out", "--json").stdout)["shards_in_order"] == told


# --- in processes of their own -----------------------------------------------------------------------------------------


def started(*args, before=""):
    program = f"import sys; sys.argv = ['jaxdict', *sys.argv[1:]]\n{textwrap.dedent(before)}\nfrom jaxdict.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(os.fsencode, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )  # fmt: skip


def ended(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out.decode(), [line for line in err.decode().splitlines() if line.startswith("jaxdict:")]


# Tells when a fit has come to its second step, so that Ctrl-C meets it at work.
TELLING = """
    from pathlib import Path
    from jaxdict.commands import console
    told = console.FitProgress.__call__
    def call(self, progress):
        told(self, progress)
        if progress.step == 2:
            Path({at!r}).touch()
    console.FitProgress.__call__ = call
"""


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_one_line_and_keeps_what_was_reached(folder, tmp_path):
    call, _ = verbs(folder, tmp_path / "out")["fit"]
    never = ["--tol", "1e-30", "--max-steps", "1000000"]
    process = started(*map(str, [*call, *never]), before=TELLING.format(at=str(tmp_path / "at work")))
    while not (tmp_path / "at work").exists():
        assert process.poll() is None, ended(process)
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    code, _, lines = ended(process)
    assert code == 130
    assert len(lines) == 1
    assert lines[0].startswith("jaxdict: interrupted; ")
    assert str(tmp_path / "out") in lines[0]
    saved = load_solution(tmp_path / "out")
    assert saved.meta["message"].startswith("interrupted")
    assert saved.meta["steps"] >= 2


# Tells when polishing has come to its first pass, and stays there until Ctrl-C.
POLISHING = """
    import time
    from pathlib import Path
    from jaxdict.commands import streaming
    told = streaming.StreamBar.__call__
    def call(self, progress):
        told(self, progress)
        if progress.stage == "passes":
            Path({at!r}).touch()
            time.sleep(600)
    streaming.StreamBar.__call__ = call
"""


@pytest.mark.slow
def test_ctrl_c_in_polish_saves_a_better_sae_or_says_that_none_is_shown(folder, tmp_path):
    call, _ = verbs(folder, tmp_path / "out")["polish"]
    process = started(*map(str, call), before=POLISHING.format(at=str(tmp_path / "at work")))
    while not (tmp_path / "at work").exists():
        assert process.poll() is None, ended(process)
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    code, _, lines = ended(process)
    assert (code, len(lines)) == (130, 1), lines
    assert ("is saved in" in lines[0]) == (tmp_path / "out").exists()
    assert "is saved in" in lines[0] or "nothing better than the SAE is shown so far" in lines[0]


@pytest.mark.slow
def test_ctrl_c_in_a_sweep_keeps_its_rows(folder, tmp_path):
    call = [
        "sweep",
        folder / "acts.npy",
        "--atoms",
        5,
        "--lams",
        "0.05:0.5:200",
        "--tol",
        "1e-4",
        "--out",
        tmp_path / "out",
    ]
    process = started(*map(str, call))
    while not (tmp_path / "out" / "rows.jsonl").exists():
        assert process.poll() is None, ended(process)
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    code, _, lines = ended(process)
    assert (code, len(lines)) == (130, 1), lines
    assert "the same command goes on from there" in lines[0]
    rows = (tmp_path / "out" / "rows.jsonl").read_text().splitlines()
    assert 0 < len([json.loads(line) for line in rows]) < 200


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["info", "fit"])
def test_a_name_with_bytes_that_are_no_text(folder, tmp_path, verb):
    acts = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"acts-\xff.npy"))
    np.save(acts, X)
    rest = [] if verb == "info" else ["--atoms", "5", "--lam", "0.1", "--max-steps", "1", "--out", str(tmp_path / "o")]
    code, out, lines = ended(started(verb, acts, *rest))
    assert (code, lines) == (0 if verb == "info" else 1, [])
    told = out if verb == "info" else load_solution(tmp_path / "o").meta["acts"]
    assert "acts-\ufffd.npy" in "".join(told.split())  # a narrow terminal breaks a long path


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_old_result_stays(folder, tmp_path):
    """The limit on a file's size stands for the disk's end: the system refuses the same write."""
    call, _ = verbs(folder, tmp_path / "out")["fit"]
    call = [*map(str, call), "--max-steps", "1"]
    assert run(*call).exit_code == 1
    old = (tmp_path / "out" / "solution.safetensors").read_bytes()
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))"
    code, _, lines = ended(started(*call, before=limit))
    assert code == 2
    assert len(lines) == 1
    assert "solution.safetensors: cannot be written" in lines[0]
    assert (tmp_path / "out" / "solution.safetensors").read_bytes() == old
