"""Files appear whole or not at all; what killed writes left is cleared; names change with every byte that matters."""

import os
import subprocess
import sys
import textwrap
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdict as jd
from jaxdict import storage


def test_a_write_clears_what_killed_writes_left_and_nothing_else(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead = tmp_path / f"{storage._our_prefix()}{ended.pid}-00"
    dead.write_text("half")
    folder = tmp_path / f"{storage._our_prefix()}{ended.pid}-01"
    (folder / "sae").mkdir(parents=True)
    alive = tmp_path / f"{storage._our_prefix()}{os.getppid()}-00"
    others = [alive, tmp_path / ".jaxdict-elsewhere-1-00", tmp_path / ".a.txt.abc", tmp_path / "kept.tmp"]
    for file in others:
        file.write_text("not ours to remove")
    storage.replace_text(tmp_path / "a.txt", "whole")
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / "a.txt"])


@pytest.mark.slow
def test_a_killed_write_leaves_the_old_file_and_the_next_one_clears_up(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    program = f"""
        import os, signal
        from jaxdict import storage
        def write(temporary):
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
        storage.replace_file({str(path)!r}, write)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False)
    assert done.returncode == -9
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    storage.replace_text(path, "new")
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "new"


FULL = """
    import resource, sys
    import numpy as np
    from pathlib import Path
    from jaxdict import storage
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    for write in (
        lambda path: storage.replace_safetensors(path, {"a": np.ones(10_000)}),
        lambda path: storage.replace_arrays(path, {"a": np.ones(10_000)}),
        lambda path: storage.replace_text(path, "long" * 10_000),
    ):
        try:
            write(Path(sys.argv[1]))
        except OSError as error:
            print(error)
"""


@pytest.mark.slow
def test_a_full_disk_is_an_os_error_with_the_files_name_and_the_old_file_stays(tmp_path):
    """The limit on a file's size stands for the disk's end: the system refuses the same write."""
    path = tmp_path / "a.bin"
    path.write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL), str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"{path}: cannot be written: ") for line in lines)
    assert [file.name for file in tmp_path.iterdir()] == ["a.bin"]
    assert path.read_text() == "old"


VALUES = [
    np.zeros(2000), np.zeros((2, 1000)), np.zeros(2000, np.float32), jnp.zeros(2000).at[1500].set(1e-300),
    None, 0, False, 0.0, "0", b"0", [], (), {}, [0, [1]], [[0], 1], {"a": 1}, {"a": 2}, {"b": 1},
    jax.random.key(0), jax.random.key(1), jd.solvers.Alternating(), jd.solvers.Combined(), np.sum, np.mean,
    partial(np.sum, axis=0), partial(np.sum, axis=1), jd.Problem(lam=0.1), jd.Problem(lam=0.1, offset=False), jd.Problem(lam=0.2),
    jd.Problem(lam=0.1, metric=np.ones(3)), jd.Problem(lam=0.1, weights=np.ones(3)), np.nan, np.inf, -0.0,
]  # fmt: skip


def test_names_differ_wherever_a_byte_does():
    names = [storage.digest(value) for value in VALUES]
    assert len(set(names)) == len(VALUES)
    assert storage.digest("ab", "c") != storage.digest("a", "bc")
    assert storage.digest(np.zeros((9000, 2))) == storage.digest(jnp.zeros((9000, 2)))
    assert storage.digest({"a": 1, "b": 2}) == storage.digest({"b": 2, "a": 1})


def test_saving_without_safetensors_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ModuleNotFoundError, match=r"jaxdict\[cli\]"):
        storage.replace_safetensors("a.safetensors", {})
