"""A run that is killed at any moment and started again ends in the same digits; a broken state is refused in one line."""

import os
import random
import signal
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

import jaxdict as jd
from jaxdict.streaming import checkpoints, job, sums

DATA = np.random.default_rng(0).normal(size=(500, 4)) ** 3
# The child of the kill test runs the same call, in a process of its own.
SCRIPT = """
    import sys, jax, numpy as np, jaxdict as jd
    from jaxdict.streaming import checkpoints, job, sums
    jax.config.update("jax_enable_x64", True)
    checkpoints.SECONDS = job.TELL_SECONDS = 0
    sums.MOST_ROWS = 128
    X = np.random.default_rng(0).normal(size=(500, 4)) ** 3
    solver = jd.solvers.Online(batch_size=50, epochs=3)
    found = jd.fit_stream(
        jd.Problem(lam=0.5), X, 6, key=jax.random.key(4), passes=6, solver=solver, checkpoint=sys.argv[1],
        callback=lambda told: print(told.stage, told.step, flush=True),
    )
    print("done", np.asarray(found.dictionary.atoms).tobytes().hex(), float(found.objective).hex(), flush=True)
"""


class Stopped(Exception):
    pass


@pytest.fixture(autouse=True)
def at_every_step(monkeypatch):
    """States are written, and the callback called, at every step; chunks are small."""
    monkeypatch.setattr(checkpoints, "SECONDS", 0)
    monkeypatch.setattr(job, "TELL_SECONDS", 0)
    monkeypatch.setattr(sums, "MOST_ROWS", 128)


def fitted(checkpoint=None, stop_after=None, **options):
    calls = []

    def callback(told):
        calls.append(told)
        if stop_after is not None and len(calls) >= stop_after:
            raise Stopped

    solver = jd.solvers.Online(batch_size=50, epochs=3)
    settings = {"key": jax.random.key(4), "passes": 6, "solver": solver, **options}
    found = jd.fit_stream(jd.Problem(lam=0.5), DATA, 6, checkpoint=checkpoint, callback=callback, **settings)
    return found, calls


def digits(found):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(found)]


@pytest.fixture(scope="module")
def undisturbed():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "TELL_SECONDS", 0)
        patch.setattr(sums, "MOST_ROWS", 128)
        return fitted()


def test_a_run_stopped_again_and_again_ends_in_the_same_digits(undisturbed, tmp_path):
    found, calls = undisturbed
    stops, resumed = 0, None
    while resumed is None:
        try:
            resumed, _ = fitted(tmp_path, stop_after=random.Random(stops).randrange(2, len(calls) // 3))
        except Stopped:
            stops += 1
    assert stops > 3
    assert digits(resumed) == digits(found)
    again, few = fitted(tmp_path)
    assert not few
    assert digits(again) == digits(found)


def killed(folder, lines, log):
    """Run the child and kill it after so many lines; whether it had ended before."""
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(folder)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    for count, line in enumerate(child.stdout, 1):
        log.append(line)
        if count >= lines:
            os.kill(child.pid, signal.SIGKILL)
            break
    child.communicate()
    return "done" in log[-1]


@pytest.fixture(scope="module")
def child(undisturbed, tmp_path_factory):
    """What a child finds undisturbed. Children are compared with children: a process that compiles the kernels, which this one may be,
    rounds otherwise than those that load them."""
    log = []
    assert killed(tmp_path_factory.mktemp("child"), 10**6, log)
    np.testing.assert_allclose(float.fromhex(log[-1].split()[2]), float(undisturbed[0].objective), rtol=1e-9)
    return log


@pytest.mark.slow
def test_a_killed_process_is_taken_up_by_another(child, tmp_path):
    log = []
    assert not killed(tmp_path, random.Random(os.getpid()).randrange(1, len(child) - 1), log)
    again = []
    assert killed(tmp_path, 10**6, again)
    assert len(again) < len(child)
    assert again[-1] == child[-1]


@pytest.mark.slow
def test_ten_kills(child, tmp_path):
    luck, log = random.Random(7), []
    for _ in range(10):
        if killed(tmp_path, luck.randrange(1, 2 + len(child) // 8), log):
            break
    killed(tmp_path, 10**6, log)
    assert log[-1] == child[-1]


def test_a_broken_state_is_refused_and_the_one_before_it_is_used(undisturbed, tmp_path):
    found, calls = undisturbed
    with pytest.raises(Stopped):
        fitted(tmp_path, stop_after=len(calls) * 2 // 3)
    newest, _ = sorted(tmp_path.glob("state-*.npz"))[::-1]
    newest.write_bytes(newest.read_bytes()[:-200])
    with pytest.warns(UserWarning, match=f"{newest.name}: broken, the state before it is used") as told:
        resumed, _ = fitted(tmp_path)
    assert "\n" not in str(told[0].message)
    assert digits(resumed) == digits(found)
    for path in tmp_path.glob("state-*.npz"):
        path.write_bytes(b"PK")
    with pytest.warns(UserWarning, match="broken"), pytest.raises(ValueError, match="no state in it is whole"):
        fitted(tmp_path)


def test_a_state_of_another_run_is_refused(tmp_path):
    with pytest.raises(Stopped):
        fitted(tmp_path, stop_after=3)
    with pytest.raises(ValueError, match="kept by another run"):
        fitted(tmp_path, key=jax.random.key(5))


def test_an_unwritable_folder_is_known_before_compute(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write"):
        fitted(tmp_path / "file")
