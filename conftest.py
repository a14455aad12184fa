"""How the tests run: x64 for truth (doctests as a new user has it, without), and a compiler in a hurry.

Most of a test's time is compiling, so the compiler's costly passes are left out; `JAXDICT_FULL_COMPILER=1` runs the suite with the
compiler that users get.
"""

import gc
import importlib.metadata
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import pytest

QUICK = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)


def known_flags(flags: tuple[str, ...]) -> list[str]:
    """Those flags that this jaxlib knows: it aborts the whole process, without a word, at one that it does not."""
    version = importlib.metadata.version("jaxlib")
    kept = Path(__file__).parent / ".pytest_cache" / f"flags-{version}-{zlib.crc32(repr(flags).encode())}"
    if kept.exists():
        return kept.read_text().split()
    known = list(flags)
    while known:
        environment = {**os.environ, "XLA_FLAGS": " ".join(known), "JAX_PLATFORMS": "cpu"}
        start = [sys.executable, "-c", "import jax; jax.devices()"]
        done = subprocess.run(start, env=environment, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode == 0:
            break
        left = [flag for flag in known if flag.split("=")[0] not in done.stderr.partition("Unknown flag")[2]]
        known = left if len(left) < len(known) else []  # none is named: it fails for another reason
    kept.parent.mkdir(exist_ok=True)
    beside = kept.with_name(
        f"{kept.name}-{os.getpid()}"
    )  # written whole or not at all: several processes start at once
    beside.write_text(" ".join(known))
    beside.replace(kept)
    return known


if not os.environ.get("JAXDICT_FULL_COMPILER"):
    given = os.environ.get("XLA_FLAGS", "").split()  # a worker's environment has them already
    os.environ["XLA_FLAGS"] = " ".join([*given, *(flag for flag in known_flags(QUICK) if flag not in given)])

# A run put behind by a shell (`pytest &`) has Ctrl-C ignored, and so would the programs that tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A worker a core: more threads in BLAS only wait for one another.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax  # noqa: E402  (its environment stands above)

# Linux allows a process 65,530 memory maps; each compiled program holds some, and the compiler crashes when they run out.
MOST_MAPS, TESTS_A_LOOK = 20_000, 10
TESTS_DONE = itertools.count(1)


@pytest.fixture(autouse=True)
def precision(request):
    """float64 in tests, jax's default in doctests; float64 again afterwards, since a verb of the command line sets its process's."""
    jax.config.update("jax_enable_x64", not isinstance(request.node, pytest.DoctestItem))
    yield
    jax.config.update("jax_enable_x64", True)


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
        # XLA's pool has a thread a core: eight devices that all wait in one of its loops would wait for ever on two.
        flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), *arguments],
            env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "NPROC": "32"},
            cwd=request.path.parent, capture_output=True, text=True, timeout=500, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr[-3000:]
        return done.stdout

    return run


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown():
    if next(TESTS_DONE) % TESTS_A_LOOK:  # the kernel takes a while to list so many
        return
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


jax.config.update("jax_enable_x64", True)  # for arrays made while test modules are imported
