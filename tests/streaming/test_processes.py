"""Two processes that share a fit: the point that one finds, a clear end where one of them is killed, and the same digits when taken up."""

import os
import random
import signal
import socket
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

import jaxdict as jd
from jaxdict.files import open_activations
from jaxdict.streaming import sums

pytestmark = pytest.mark.slow

DATA = np.random.default_rng(0).normal(size=(600, 4)) ** 3
SCRIPT = """
    import sys, jax, numpy as np
    index, port, source, kept = sys.argv[1:]
    jax.config.update("jax_enable_x64", True)
    jax.distributed.initialize("localhost:" + port, num_processes=2, process_id=int(index), heartbeat_timeout_seconds=20)
    import jaxdict as jd
    from jaxdict.files import open_activations
    from jaxdict.streaming import checkpoints, job, sums
    checkpoints.SECONDS = job.TELL_SECONDS = 0
    sums.MOST_ROWS = 64
    found = jd.fit_stream(
        jd.Problem(lam=0.5), open_activations(source), 6, key=jax.random.key(4), passes=6, checkpoint=kept or None,
        solver=jd.solvers.Online(batch_size=50, epochs=3), callback=lambda told: print(told.stage, told.step, flush=True),
    )
    numbers = [*np.asarray(found.dictionary.atoms).ravel(), found.objective, found.standard_error, found.population.rms]
    print("done", *(float(number).hex() for number in numbers), flush=True)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for k, rows in enumerate(np.split(DATA, [90, 250, 400])):
        np.save(folder / f"part-{k}.npy", rows)
    return folder


def started(source, kept=""):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    return [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SCRIPT), str(k), port, str(source), str(kept)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        for k in range(2)
    ]  # fmt: skip


def numbers_of(processes):
    """What the two of them found, the same digits in both."""
    told = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], [err[-2000:] for _, err in told]
    lines = [out.splitlines()[-1] for out, _ in told]
    assert lines[0] == lines[1]
    return [float.fromhex(number) for number in lines[0].split()[1:]]


@pytest.fixture(scope="module")
def alone(source):
    """What one process finds; it leaves the kernels on disk, so that all others load them and round alike."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sums, "MOST_ROWS", 64)
        solver = jd.solvers.Online(batch_size=50, epochs=3)
        options = {"key": jax.random.key(4), "passes": 6, "solver": solver}
        found = jd.fit_stream(jd.Problem(lam=0.5), open_activations(source), 6, **options)
    numbers = [*np.asarray(found.dictionary.atoms).ravel(), found.objective, found.standard_error, found.population.rms]
    return np.asarray(numbers, float)


@pytest.fixture(scope="module")
def undisturbed(source, alone):
    return numbers_of(started(source))


def test_two_processes_find_what_one_finds(alone, undisturbed):
    np.testing.assert_allclose(undisturbed, alone, rtol=1e-9)


def killed_after(processes, which, lines):
    """Kill one of the two after so many lines of its; whether it had ended before, and how the other one ended."""
    seen = []
    for line in processes[which].stdout:
        seen.append(line)
        if len(seen) >= lines:
            os.kill(processes[which].pid, signal.SIGKILL)
            break
    processes[which].communicate()
    _, err = processes[1 - which].communicate(timeout=300)
    return processes[1 - which].returncode, err


def clear(err):
    """Whether the end is told in a line: ours, or the coordination service's where that is quicker."""
    return any(
        "has lost another one, so the run ends here" in line or "another task died" in line for line in err.splitlines()
    )


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_a_killed_process_ends_the_other_and_both_are_taken_up(source, undisturbed, tmp_path, which):
    code, err = killed_after(started(source, tmp_path), which, 20 + 25 * which)
    assert code != 0
    assert clear(err), err[-2000:]
    assert numbers_of(started(source, tmp_path)) == undisturbed


@pytest.mark.slow
def test_ten_kills_of_either(source, undisturbed, tmp_path):
    luck = random.Random(3)
    for _ in range(10):
        code, err = killed_after(started(source, tmp_path), luck.randrange(2), luck.randrange(1, 12))
        assert code == 0 or clear(err), err[-2000:]
    assert numbers_of(started(source, tmp_path)) == undisturbed


@pytest.mark.slow
def test_eight_devices_share_the_rows_of_a_chunk(source, alone, on_eight_devices):
    script = """
        import sys, jax, numpy as np
        jax.config.update("jax_enable_x64", True)
        import jaxdict as jd
        from jaxdict.encoding.exact import encode
        from jaxdict.files import open_activations
        from jaxdict.streaming import sums
        spread = []
        def seen(problem, dictionary, X, **options):
            spread.append(len(X.sharding.device_set))
            return encode(problem, dictionary, X, **options)
        sums.encode = seen
        sums.MOST_ROWS = 64
        found = jd.fit_stream(
            jd.Problem(lam=0.5), open_activations(sys.argv[1]), 6, key=jax.random.key(4), passes=6,
            solver=jd.solvers.Online(batch_size=50, epochs=3),
        )
        assert set(spread) == {8}
        print(*(float(number).hex() for number in [*np.asarray(found.dictionary.atoms).ravel(), found.objective]))
    """
    numbers = [float.fromhex(number) for number in on_eight_devices(script, str(source)).split()]
    np.testing.assert_allclose(numbers, alone[:-2], rtol=1e-9)
