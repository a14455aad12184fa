"""Execute every notebook from a clean kernel, two at a time; an error or a failed assertion in any of them is an error here."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient

AT_ONCE = 2  # much of a notebook's time is compiling, on one core
folder = Path(__file__).parent.parent / "notebooks"
paths = sorted(folder.glob("*.ipynb"))


def execute(path: Path) -> None:
    start = time.perf_counter()
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}}).execute()
    print(f"{path.name}: {len(notebook.cells)} cells, {time.perf_counter() - start:.0f} s", flush=True)


with ThreadPoolExecutor(AT_ONCE) as pool:
    for done in [pool.submit(execute, path) for path in paths]:
        done.result()
print(f"{len(paths)} notebooks executed")
sys.exit(0 if paths else 1)
