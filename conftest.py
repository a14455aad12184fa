"""How the tests run: x64 for truth (doctests as a new user has it, without), and a compiler in a hurry.

Most of a test's time is compiling, so the compiler's costly passes are left out; `JAXDICT_FULL_COMPILER=1` runs the suite with the
compiler that users get.
"""

import gc
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

if not os.environ.get("JAXDICT_FULL_COMPILER"):
    quick = (
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick}".strip()

# A worker a core: more threads in BLAS only wait for one another.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax

# Linux allows a process 65,530 memory maps; each compiled program holds some, and the compiler crashes when they run out.
MOST_MAPS = 20_000


@pytest.fixture(autouse=True)
def precision(request):
    """float64 in tests, jax's default in doctests."""
    jax.config.update("jax_enable_x64", not isinstance(request.node, pytest.DoctestItem))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Whole files to a worker, in order: a file's tests share compiled programs and module fixtures."""
    if config.option.dist != "load":
        return None
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


@pytest.fixture
def on_eight_devices(request):
    """Runs a script in a process of its own with eight simulated devices, beside the test's file; returns what it printed."""

    def run(script: str, *arguments: str) -> str:
        flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), *arguments],
            env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            cwd=request.path.parent, capture_output=True, text=True, timeout=500, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr[-3000:]
        return done.stdout

    return run


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown():
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


jax.config.update("jax_enable_x64", True)  # for arrays made while test modules are imported
