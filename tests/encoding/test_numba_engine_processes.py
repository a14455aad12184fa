"""The numba engine where it meets processes, threads and devices: each case in a process of its own, with a time limit.

What hung or aborted once did so only with data as large as here.
"""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

pytest.importorskip("numba")


def python(script, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


STRESS = """
import concurrent.futures, jax, numpy as np, jaxdict as jd
rng = np.random.default_rng(0)
D = rng.normal(size=(64, 32)).astype("f")
D = jd.Dictionary(D / np.linalg.norm(D, axis=1, keepdims=True))
run = jax.jit(lambda X: jd.encode(jd.Problem(lam=1.0), D, X, tol=1e-4, method="numba").codes)
data = [rng.normal(size=(4000, 32)).astype("f") for _ in range(8)]
expected = [np.asarray(run(X)) for X in data]
import faulthandler; faulthandler.dump_traceback_later(60, exit=True)
def some(thread):
    return [run(data[thread] + np.float32(0)) for _ in range(25)]  # all in flight before one is waited for
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(some, range(8)))
for many, one in zip(found, expected):
    for codes in many:
        np.testing.assert_array_equal(codes, one)
"""


@pytest.mark.slow
def test_two_hundred_calls_in_flight_from_eight_threads():
    python(STRESS)


SHARDED = """
import sys, jax, jax.numpy as jnp, numpy as np, jaxdict as jd
from functools import partial
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxdict.encoding.lasso import Lasso
from jaxdict.encoding.numba_engine.calls import codes_by_numba
from jaxdict.encoding.numba_engine.newton import search_by_numba
from jaxdict.encoding.numba_engine.sums import sums_by_numba
from jaxdict.encoding.slots import Slots
rng, N, d, K = np.random.default_rng(0), 4096, 64, 256
X, D = rng.normal(size=(N, d)).astype("f"), rng.normal(size=(K, d)).astype("f")
D /= np.linalg.norm(D, axis=1, keepdims=True)

def codes(X, D):
    return codes_by_numba(Lasso(X, D, jnp.float32(1.5)), None, 1e-6, 200, n_slots=32, dense=False)

def warm(X, D):
    start = Slots(jnp.full_like(X[:, :8], 3, dtype=int), jnp.zeros_like(X[:, :8]).at[:, 0].set(0.1))
    return codes_by_numba(Lasso(X, D, jnp.float32(1.5)), start, 1e-6, 200, n_slots=32, dense=False)[2:4]

def sums(X, D):
    none = Slots(jnp.full_like(X[:, :32], K, dtype=int), jnp.zeros_like(X[:, :32]))
    return sums_by_numba(Lasso(X, D, jnp.float32(1.5)), jnp.full_like(X[:, 0], 1 / N), none, 1e-6, 1e-4, 200, dense=False)

def search(X, D):
    slots, _, moments, _ = sums(X, D)
    ones = jnp.ones_like(D[:, 0])
    slopes = -moments.cross, -moments.mean_residual
    space = D, jnp.ones_like(D[0]), ones, ones[0], 1.5 * moments.mean_codes
    weights, radius = jnp.full_like(X[:, 0], 1 / N), 1e-2 * ones[0]
    return search_by_numba(Lasso(X, D, jnp.float32(1.5)), weights, slots, space, slopes, radius, 0.1 * ones[0], most=3)

alone = [jax.jit(call)(X, D) for call in (codes, warm, sums, search)]
import faulthandler; faulthandler.dump_traceback_later(240, exit=True)  # all is compiled but for XLA's part
same = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)  # sums of float32 in another order
for n in (2, 4, 8):
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((n,), ("s",), axis_types=(kind,), devices=jax.devices()[:n])
        x, whole = jax.device_put(X, NamedSharding(mesh, P("s"))), jax.device_put(D, NamedSharding(mesh, P()))
        for call, want in zip((codes, warm, sums, search), alone):
            program = jax.jit(call).lower(x, whole).compile()
            found = program(x, whole)
            jax.tree.map(same, found, want)
            if call is not search:  # nothing as large as the samples goes to another device
                assert "all-gather" not in program.as_text() and "all-to-all" not in program.as_text()
                first = jax.tree.leaves(found)[0]
                assert first.sharding.shard_shape(first.shape)[0] == N // n
    one = jax.shard_map(
        lambda X, D: codes(X, D)[0], mesh=mesh, in_specs=(P("s"), P()), out_specs=Slots(P("s"), P("s"))
    )
    for place in (one, jax.jit(one)):
        jax.tree.map(same, place(x, whole), alone[0][0])
whole_fit = jd.encode(jd.Problem(lam=1.5, offset=False), jd.Dictionary(D), x, tol=1e-5, method="numba")
assert "solved" in whole_fit.message()
"""


@pytest.mark.slow
def test_sharded_samples_are_solved_where_they_are(on_eight_devices):
    on_eight_devices(SHARDED)


CACHED = """
import collections, json, jax, numpy as np
seen = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: seen.update([event]))
import jaxdict as jd
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
X = np.random.default_rng(0).normal(size=(50, 4)).astype("f")
jd.encode(jd.Problem(lam=0.5), jd.Dictionary(np.eye(4, dtype="f")), X, method="numba")
print(json.dumps(seen))
"""


def test_a_second_process_finds_the_programs_on_disk(tmp_path):
    first, second = (json.loads(python(CACHED, JAX_COMPILATION_CACHE_DIR=str(tmp_path))) for _ in range(2))
    asked, hits, misses = (
        f"/jax/compilation_cache/{event}" for event in ("compile_requests_use_cache", "cache_hits", "cache_misses")
    )
    assert first[misses] > 0
    assert second[hits] == second[asked] == first[asked]
    assert second.get(misses, 0) == 0


OUTER = """
from numba import njit
from inner import half

@njit
def same(x):
    return half(x) + half(x)

def target(x):
    return same(x)
"""
INNER = """
from numba import njit

@njit
def half(x):
    return {factor} * x
"""
RUN = """
import sys; sys.path.insert(0, sys.argv[1])
from jaxdict.encoding.numba_engine.kernels.disk import c_function
from outer import target
found = c_function("target", target)
print(found.ctypes(10), found.cache_hits)
"""


def test_code_on_disk_is_known_by_all_files_that_are_in_it(tmp_path):
    (tmp_path / "outer.py").write_text(OUTER)
    (tmp_path / "inner.py").write_text(INNER.format(factor=2))
    assert python(RUN, tmp_path).split() == ["40", "0"]
    assert python(RUN, tmp_path).split() == ["40", "1"]
    (tmp_path / "inner.py").write_text(INNER.format(factor=3))
    assert python(RUN, tmp_path).split() == ["60", "0"]


def test_no_folder_for_code_on_disk_is_no_trouble(tmp_path):
    (tmp_path / "outer.py").write_text(OUTER)
    (tmp_path / "inner.py").write_text(INNER.format(factor=2))
    # What numba raises where it finds none.
    refuse = "from numba.core import caching\ncaching.FunctionCache.__init__ = lambda *_: (_ for _ in ()).throw(RuntimeError())\n"
    script = refuse + RUN
    assert python(script, tmp_path).split() == ["40", "0"]
    assert python(script, tmp_path).split() == ["40", "0"]


EXPORT = """
import sys, jax, numpy as np, jaxdict as jd
D, X = jd.Dictionary(np.eye(4, dtype="f")), np.random.default_rng(0).normal(size=(50, 4)).astype("f")
run = jax.jit(lambda X: jd.encode(jd.Problem(lam=0.5), D, X, method="numba").codes)
expected = run(X)
allowed = [jax.export.DisabledSafetyCheck.custom_call("jaxdict_codes_by_gram_float32")]
program = jax.export.export(run, platforms=["cpu"], disabled_checks=allowed)(X)
np.testing.assert_array_equal(jax.jit(program.call)(X), expected)
"""


def test_a_program_with_kernels_can_be_exported_for_a_cpu():
    python(EXPORT)
