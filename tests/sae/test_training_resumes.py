"""Training that is killed at any moment and started again ends in the same digits; a broken state is refused, the one before it used."""

import random
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

import jaxdict as jd
from jaxdict.files import Shards
from jaxdict.sae.trainers import running
from jaxdict.streaming import checkpoints

draw = np.random.default_rng(0)
X = draw.normal(size=(300, 4)) ** 3
SPARSE = {"standard": {"lam": 0.2}, "p_anneal": {"lam": 0.2}, "batchtopk": {"k": 2}}
# The child of the kill test makes the same call, in a process of its own.
SCRIPT = """
    import sys, jax, numpy as np, jaxdict as jd
    from jaxdict.files import Shards
    from jaxdict.sae.trainers import running
    from jaxdict.streaming import checkpoints
    jax.config.update("jax_enable_x64", True)
    checkpoints.SECONDS, running.STEPS_PER_LOOK = 0, 20
    X = np.random.default_rng(0).normal(size=(300, 4)) ** 3
    sae = jd.sae.train(
        Shards([X]), 6, key=jax.random.key(4), lam=0.2, steps=400, batch_size=32, dead_steps=50, checkpoint=sys.argv[1],
        callback=lambda *told: print(*told, flush=True),
    )
    print("done", np.asarray(sae.W_dec).tobytes().hex(), np.asarray(sae.b_enc).tobytes().hex(), flush=True)
"""


class Stopped(Exception):
    pass


@pytest.fixture(autouse=True)
def at_every_look(monkeypatch):
    """States are written, and the callback called, every twenty steps."""
    monkeypatch.setattr(checkpoints, "SECONDS", 0)
    monkeypatch.setattr(running, "STEPS_PER_LOOK", 20)


def trained(name, checkpoint=None, stop_after=None, rows=X, **options):
    def callback(step, *_):
        if stop_after is not None and step >= stop_after:
            raise Stopped

    settings = {"key": jax.random.key(4), "steps": 100, "batch_size": 32, "dead_steps": 30, **SPARSE[name], **options}
    return jd.sae.train(rows, 6, architecture=name, checkpoint=checkpoint, callback=callback, **settings)


def digits(sae):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(sae)]


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("kind", ["memory", "shards"])
def test_stopped_again_and_again_it_ends_in_the_same_digits(name, kind, tmp_path):
    rows = X if kind == "memory" else Shards([X[:100], X[100:]])
    whole = trained(name, rows=rows)
    for stop in (20, 40, 80):
        with pytest.raises(Stopped):
            trained(name, tmp_path, stop, rows)
    assert digits(trained(name, tmp_path, rows=rows)) == digits(whole)
    calls = []
    settings = {"key": jax.random.key(4), "steps": 100, "batch_size": 32, "dead_steps": 30, **SPARSE[name]}
    done = jd.sae.train(
        rows, 6, architecture=name, checkpoint=tmp_path, callback=lambda *t: calls.append(t), **settings
    )
    assert digits(done) == digits(whole)
    assert calls == []  # nothing is left to do


def test_a_state_cut_in_half_is_refused_and_the_one_before_it_used(tmp_path):
    whole = trained("standard")
    with pytest.raises(Stopped):
        trained("standard", tmp_path, 60)
    kept = sorted(tmp_path.glob("state-*.npz"))
    assert len(kept) == 2
    kept[-1].write_bytes(kept[-1].read_bytes()[: kept[-1].stat().st_size // 2])
    with pytest.warns(UserWarning, match="broken, the state before it is used"):
        assert digits(trained("standard", tmp_path)) == digits(whole)
    for path in tmp_path.glob("state-*.npz"):
        path.write_bytes(b"PK")
    with pytest.warns(UserWarning, match="broken"), pytest.raises(ValueError, match="no state in it is whole"):
        trained("standard", tmp_path)


@pytest.mark.parametrize(
    "other",
    [
        {"lam": 0.3},
        {"key": jax.random.key(5)},
        {"rows": X + 1},
        {"steps": 120},
        {"learning_rate": 1e-2},
        {"dead_steps": 31},
    ],
)
def test_another_runs_state_is_refused(other, tmp_path):
    with pytest.raises(Stopped):
        trained("standard", tmp_path, 20)
    with pytest.raises(ValueError, match="kept by another run"):
        trained("standard", tmp_path, **other)


def test_many_runs_resume_too(tmp_path):
    keys = jax.random.split(jax.random.key(0), 2)
    options = {"keys": keys, "lam": [0.1, 0.3], "steps": 60, "batch_size": 32}
    whole = jd.sae.train_batch(X, 6, **options)

    def stop(step, *_):
        if step >= 40:
            raise Stopped

    with pytest.raises(Stopped):
        jd.sae.train_batch(X, 6, **options, checkpoint=tmp_path, callback=stop)
    again = jd.sae.train_batch(X, 6, **options, checkpoint=tmp_path)
    assert [digits(sae) for sae in again] == [digits(sae) for sae in whole]


def child(folder):
    lines = [line.removeprefix("    ") for line in SCRIPT.splitlines()]
    return subprocess.Popen([sys.executable, "-c", "\n".join(lines), str(folder)], stdout=subprocess.PIPE, text=True)


def finished(folder) -> str:
    process = child(folder)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return out.strip().splitlines()[-1]


def killed_and_gone_on_with(folder, moments):
    """A run killed with signal 9 after so many looks of each of its lives, then let end."""
    for looks in moments:
        process = child(folder)
        assert process.stdout is not None
        for _ in range(looks):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    return finished(folder)


@pytest.mark.slow
def test_killed_it_goes_on_to_the_same_digits(tmp_path):
    assert killed_and_gone_on_with(tmp_path / "killed", (3, 5)) == finished(tmp_path / "whole")


@pytest.mark.slow
def test_killed_at_ten_moments_it_goes_on_to_the_same_digits(tmp_path):
    moments = [random.Random(seed).randrange(1, 3) for seed in range(10)]
    assert killed_and_gone_on_with(tmp_path / "killed", moments) == finished(tmp_path / "whole")
