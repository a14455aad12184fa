"""Print the path of a Python from 3.12 on that is at hand and is not the one that runs this; nothing where there is none."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ASK = "import sys, venv, ensurepip; print(sys.version_info[0] * 100 + sys.version_info[1])"


def candidates():
    """Newest first: on the path, then pyenv's own."""
    yield from (f"python3.{minor}" for minor in (13, 12))
    if shutil.which("pyenv"):
        root = subprocess.run(["pyenv", "root"], capture_output=True, text=True, check=False).stdout.strip()
        for minor in (13, 12):
            yield from (os.fspath(path) for path in sorted(Path(root).glob(f"versions/3.{minor}*/bin/python")))


def version(python: str) -> int:
    """As 313 for 3.13; 0 where it does not run (pyenv's shims stand for versions that are not active) or cannot make environments."""
    if shutil.which(python) is None:
        return 0
    done = subprocess.run([python, "-c", ASK], capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else 0


def main():
    mine = sys.version_info[0] * 100 + sys.version_info[1]
    found = [(version(python), python) for python in candidates()]
    fit = [pair for pair in found if 312 <= pair[0] <= 313 and pair[0] != mine]
    print(max(fit)[1] if fit else "")


main()
