"""Execute every notebook from a clean kernel; an error or a failed assertion in any of them is an error here."""

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

folder = Path(__file__).parent.parent / "notebooks"
paths = sorted(folder.glob("*.ipynb"))
for path in paths:
    start = time.perf_counter()
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}}).execute()
    print(f"{path.name}: {len(notebook.cells)} cells, {time.perf_counter() - start:.0f} s", flush=True)
print(f"{len(paths)} notebooks executed")
sys.exit(0 if paths else 1)
