"""Learning from a stream: the objective on rows of held-out documents against CPU time, jaxdict beside the rivals, in one run.

    python benchmarks/streams.py ACTS.npy DOCUMENTS [--atoms 4096] [--lam 0.07] [--seconds 600] [--passes 3] [--out benchmarks/streams.md]

ACTS is a .npy file of activations (rows, d); DOCUMENTS says which document each row is of: a .npy file, or an .npz file with an array
`doc`. `--held-documents` of them, drawn by `--seed`, are for judging only. Rows are centred by the others' mean and divided by their root
mean square norm, in float32, and written beside the result; then every learner solves the same problem, codes not negative, in a
process of its own with a budget of CPU seconds (user and system, all threads, compiling included; copies of the dictionary do not
count):

- `jaxdict.fit_stream`, from the memory map, its own rows kept aside being 1% of the training rows; with an offset, as an SAE has,
  and without one, as scikit-learn and SPAMS have none;
- scikit-learn's MiniBatchDictionaryLearning by `partial_fit` over shuffled batches, the data in memory;
- SPAMS's `trainDL` online, with its model handed on from one part of the budget to the next, the data in memory;
- `jaxdict.sae.train`, a run for each budget, since its learning rate falls at the end of the run.

Then `--passes` exact passes from fit_stream's last dictionary: what they still gain.

What each has at a time is judged alike: atoms of norm one (dead ones left out), exact codes of the held-out rows, standard errors by
document, differences row by row. The table gives the last dictionary that was ready at each time.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np

LEARNERS = (
    "jaxdict fit_stream",
    "jaxdict fit_stream, no offset",
    "scikit-learn MiniBatch",
    "SPAMS online",
    "jaxdict sae.train",
)
PASSES = "jaxdict exact passes"
BATCH = 512
# Times at which dictionaries are kept and compared, as shares of the budget.
MARKS = (0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.45, 0.65, 1.0)


def own_pages() -> int | None:
    """Bytes of the process's own pages, without those of mapped files; None where there is no /proc."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


class Keeper:
    """CPU seconds of the process less those spent in keeping, dictionaries as they come, and the most memory of its own."""

    def __init__(self, folder: Path, seconds: float):
        self.folder, self.marks = folder, [share * seconds for share in MARKS]
        self.seconds, self.began, self.spent, self.rows, self.most = seconds, time.process_time(), 0.0, [], 0
        threading.Thread(target=self._watch, daemon=True).start()

    def clock(self) -> float:
        return time.process_time() - self.began - self.spent

    def due(self) -> bool:
        return bool(self.marks) and self.clock() >= self.marks[0]

    def over(self) -> bool:
        return self.clock() >= self.seconds

    def keep(self, atoms, **facts) -> None:
        at = self.clock()
        began = time.process_time()
        self.marks = [mark for mark in self.marks if mark > at]
        file = self.folder / f"{len(self.rows):03d}.npy"
        np.save(file, np.asarray(atoms, np.float32))
        self.rows.append({"cpu": at, "wall": time.perf_counter(), "file": file.name, "memory": self.most, **facts})
        (self.folder / "rows.json").write_text(json.dumps(self.rows))
        self.spent += time.process_time() - began

    def _watch(self):
        while (pages := own_pages()) is not None:
            self.most = max(self.most, pages)
            time.sleep(0.2)


def folder_of(name: str) -> str:
    """A learner's name as that of a folder."""
    return name.replace(",", "").replace(" ", "-")


class Over(Exception):
    """The budget is spent."""


def learn_stream(X, given, keeper, offset=True) -> None:
    import jax

    import jaxdict as jd

    last = [""]
    keep = lambda found, **facts: keeper.keep(found.atoms, offset=np.asarray(found.offset).tolist(), **facts)  # noqa: E731

    def callback(told):
        changed = told.stage != last[0] and last[0] != ""
        if keeper.due() or changed:
            keep(told.dictionary, stage=last[0] if changed else told.stage)
        last[0] = told.stage
        if keeper.over():
            raise Over

    problem = jd.Problem(lam=given.lam, offset=offset)
    options = {"key": jax.random.key(given.seed), "held_out": 0.01, "passes": 10**6, "callback": callback}
    try:
        found = jd.fit_stream(problem, X, given.atoms, **options)
        keep(found.dictionary, stage="end", message=found.message())
    except Over as stopped:
        found = stopped.solution  # type: ignore[attr-defined]
        keep(found.dictionary, stage=last[0], message=found.message())


def learn_passes(X, given, keeper) -> None:
    """Exact passes alone, from where `fit_stream` stood at the end of its budget; each accepted point is kept."""
    import jax
    import jax.numpy as jnp

    import jaxdict as jd

    folder = given.folder / folder_of(LEARNERS[0])
    last = json.loads((folder / "rows.json").read_text())[-1]
    start = jd.Dictionary(jnp.asarray(np.load(folder / last["file"])), jnp.asarray(last["offset"], jnp.float32))
    options = {"key": jax.random.key(given.seed), "held_out": 0.01, "solver": jd.solvers.Online(epochs=0)}
    found = jd.fit_stream(jd.Problem(lam=given.lam), X, start=start, passes=given.passes, **options)
    keeper.keep(found.dictionary.atoms, offset=np.asarray(found.dictionary.offset).tolist(), message=found.message())


def learn_scikit(X, given, keeper) -> None:
    from sklearn.decomposition import MiniBatchDictionaryLearning

    rows, luck = np.array(X), np.random.default_rng(given.seed)
    fixed = {
        "positive_code": True,
        "fit_algorithm": "cd",
        "transform_algorithm": "lasso_cd",
        "random_state": given.seed,
    }
    model = MiniBatchDictionaryLearning(given.atoms, alpha=given.lam, batch_size=BATCH, **fixed)
    while not keeper.over():
        order = luck.permutation(len(rows))
        for at in range(0, len(rows) - BATCH + 1, BATCH):
            model.partial_fit(rows[order[at : at + BATCH]])
            if keeper.due():
                keeper.keep(model.components_)
            if keeper.over():
                break


def learn_spams(X, given, keeper) -> None:
    import spams

    rows, threads = np.asfortranarray(np.array(X).T), len(os.sched_getaffinity(0))
    fixed = {"lambda1": given.lam, "mode": 2, "posAlpha": True, "batchsize": BATCH, "numThreads": threads}
    start = np.random.default_rng(given.seed).permutation(rows.shape[1])[: given.atoms]
    D, model = np.asfortranarray(rows[:, start] / np.linalg.norm(rows[:, start], axis=0)), None
    while keeper.marks:
        wall = max(1, round((keeper.marks[0] - keeper.clock()) / threads))  # a negative `iter` is a time
        more = {} if model is None else {"model": model}
        D, model = spams.trainDL(rows, D=D, iter=-wall, return_model=True, verbose=False, **fixed, **more)
        if keeper.due():
            keeper.keep(D.T)


def learn_sae(X, given, keeper) -> None:
    import jax

    import jaxdict as jd

    rows = jax.numpy.asarray(np.array(X))

    def train(steps):
        began = keeper.clock()
        options = {"lam": given.lam, "steps": steps, "batch_size": BATCH}
        sae = jax.block_until_ready(jd.sae.train(rows, given.atoms, key=jax.random.key(given.seed), **options))
        return sae, keeper.clock() - began

    train(100)  # compiles
    pace = train(200)[1] / 200
    for seconds in list(keeper.marks):
        sae, taken = train(max(100, round(seconds / pace)))
        keeper.keep(sae.W_dec, own=taken, steps=max(100, round(seconds / pace)), offset=np.asarray(sae.b_dec).tolist())


def prepared(given) -> tuple[Path, np.ndarray, np.ndarray]:
    """The training rows in a file of their own, and the held-out rows with their documents."""
    stored = np.load(given.acts, mmap_mode="r")
    loaded = np.load(given.documents, allow_pickle=False)
    documents = loaded if isinstance(loaded, np.ndarray) else loaded["doc"]
    if documents.shape != stored.shape[:1]:
        sys.exit(f"{given.documents}: shape {documents.shape} but {given.acts} has {stored.shape[0]} rows")
    names = np.unique(documents)
    if len(names) <= given.held_documents:
        sys.exit(f"{given.documents}: {len(names)} documents, of which {given.held_documents} cannot be held out")
    aside = np.isin(documents, np.random.default_rng(given.seed).permutation(names)[: given.held_documents])
    training = np.flatnonzero(~aside)
    parts = np.array_split(training, -(-len(training) // 8192))
    mean = sum(stored[part].astype(float).sum(axis=0) for part in parts) / len(training)
    size = np.sqrt(sum(((stored[part] - mean) ** 2).sum() for part in parts) / len(training))
    path, at = given.folder / "training.npy", 0
    out = np.lib.format.open_memmap(path, "w+", np.float32, (len(training), stored.shape[1]))
    for part in parts:
        out[at : at + len(part)] = (stored[part] - mean) / size
        at += len(part)
    out.flush()
    return path, ((stored[np.flatnonzero(aside)] - mean) / size).astype(np.float32), documents[aside]


def judged(atoms, offset, rows, documents, lam) -> tuple[np.ndarray, float]:
    """The objective of each held-out row with exact codes, and its mean number of active atoms."""
    import jax.numpy as jnp

    import jaxdict as jd
    from jaxdict.streaming.sums import solve_chunk

    norms = np.linalg.norm(atoms, axis=1)
    units = atoms[norms > 0] / norms[norms > 0, None]
    dictionary = jd.Dictionary(jnp.asarray(units), jnp.asarray(offset, jnp.float32))
    problem = jd.Problem(lam=lam).astype(jnp.float32)
    chunks = [solve_chunk(problem, dictionary, rows[at : at + 4096], 1e-5) for at in range(0, len(rows), 4096)]
    active = sum(chunk.codes.nnz for chunk in chunks) / len(rows)
    return np.concatenate([chunk.values for chunk in chunks]), active


def mean_and_error(values, documents) -> tuple[float, float]:
    """The mean over rows and its standard error, documents taken as independent."""
    of_row = np.unique(documents, return_inverse=True)[1]
    left, count = np.bincount(of_row, values - values.mean()), of_row.max() + 1
    return float(values.mean()), float(np.sqrt(np.sum(left**2) * count / max(count - 1, 1)) / len(values))


def report(rows, times, given, facts) -> str:
    """Tables of what was measured."""
    lines = [
        "# Streams", "", f"`python benchmarks/streams.py`, {facts['date']}, {facts['cores']} cores, load {facts['load']} at the start: "
        f"{facts['training']:,} training rows of {facts['d']} dimensions, judged on {facts['held']:,} rows of {given.held_documents} "
        f"other documents; K = {given.atoms:,}, lam = {given.lam:g}. Objective on the held-out rows with exact codes, standard error by "
        "document, at CPU seconds; `-` where nothing was ready by then.", "",
        "| CPU seconds | " + " | ".join(LEARNERS) + " |", "| --- " * (1 + len(LEARNERS)) + "|",
    ]  # fmt: skip
    for at in times:
        ready = [[row for row in rows[name] if row.get("own", row["cpu"]) <= 1.02 * at] for name in LEARNERS]
        told = [f"{r[-1]['mean']:.5f} +- {r[-1]['error']:.1g}" if r else "-" for r in ready]
        lines.append(f"| {at:.3g} | " + " | ".join(told) + " |")
    lines += [
        "",
        "| | active atoms a row | memory of its own, GiB | last dictionary at CPU seconds |",
        "| --- | --- | --- | --- |",
    ]
    for name in LEARNERS:
        if rows[name]:
            last = rows[name][-1]
            memory, at = last["memory"] / 2**30, last.get("own", last["cpu"])
            lines.append(f"| {name} | {last['active']:.1f} | {memory:.2f} | {at:.0f} |")
    gain = facts.get("gain")
    if gain is not None:
        passes = facts["passes"]
        lines += ["", f"Exact passes from fit_stream's last dictionary, {passes['cpu']:.0f} CPU seconds more, gain {gain[0]:.2g} +- "
                  f"{gain[1]:.1g} on the held-out rows, row by row: {passes['message']}."]  # fmt: skip
    lines += ["", *(f"{name}: {facts['failed'][name]}" for name in LEARNERS if name in facts["failed"])]
    return "\n".join(lines).rstrip() + "\n"


def one(given) -> None:
    """One learner in this process."""
    X = np.load(given.folder / "training.npy", mmap_mode="r")
    folder = given.folder / folder_of(given.one)
    folder.mkdir(exist_ok=True)
    learners = learn_stream, partial(learn_stream, offset=False), learn_scikit, learn_spams, learn_sae, learn_passes
    dict(zip((*LEARNERS, PASSES), learners, strict=True))[given.one](X, given, Keeper(folder, given.seconds))


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("acts", type=Path)
    parser.add_argument("documents", type=Path)
    parser.add_argument("--atoms", type=int, default=4096)
    parser.add_argument("--lam", type=float, default=0.07)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--passes", type=int, default=3, help="exact passes after fit_stream's budget; 0: none")
    parser.add_argument("--held-documents", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--folder", type=Path, default=Path("streams"), help="for the rows and the dictionaries")
    parser.add_argument(
        "--only", choices=(*LEARNERS, PASSES), action="append", help="one learner; the others' last rows are kept"
    )
    parser.add_argument("--one", choices=(*LEARNERS, PASSES), help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.one:
        return one(given)
    given.folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "cores": len(os.sched_getaffinity(0)),
        "load": f"{os.getloadavg()[0]:.1f}",
    }
    path, held, documents = prepared(given)
    shape = np.load(path, mmap_mode="r").shape
    facts |= {"training": shape[0], "d": shape[1], "held": len(held), "failed": {}}
    arguments = [
        str(given.acts),
        str(given.documents),
        *(f"--{name}={getattr(given, name)}" for name in ("atoms", "lam")),
    ]
    arguments += [
        f"--seconds={given.seconds}",
        f"--seed={given.seed}",
        f"--folder={given.folder}",
        f"--passes={given.passes}",
    ]
    for name in given.only or (*LEARNERS, *[PASSES] * (given.passes > 0)):
        (given.folder / folder_of(name) / "rows.json").unlink(missing_ok=True)
        print(name, flush=True)
        done = subprocess.run([sys.executable, __file__, *arguments, "--one", name], capture_output=True, text=True)
        if done.returncode:
            facts["failed"][name] = (done.stderr.strip().splitlines() or ["?"])[-1]
    rows, values = {}, {}
    for name in (*LEARNERS, PASSES):
        folder = given.folder / folder_of(name)
        rows[name] = json.loads((folder / "rows.json").read_text()) if (folder / "rows.json").exists() else []
        for row in rows[name]:
            offset = row.pop("offset", [0.0] * shape[1])
            found, row["active"] = judged(np.load(folder / row["file"]), offset, held, documents, given.lam)
            row["mean"], row["error"] = mean_and_error(found, documents)
            values[name, row["file"]] = found
            print(
                name,
                f"{row['cpu']:.0f} s",
                f"{row['mean']:.5f} +- {row['error']:.1g}",
                row.get("stage", ""),
                flush=True,
            )
    if rows[LEARNERS[0]] and rows[PASSES]:
        first, last = (values[name, rows[name][-1]["file"]] for name in (LEARNERS[0], PASSES))
        facts |= {"gain": mean_and_error(first - last, documents), "passes": rows[PASSES][-1]}
    given.out.with_suffix(".json").write_text(json.dumps({"facts": facts, "rows": rows}, indent=1) + "\n")
    given.out.write_text(report(rows, [share * given.seconds for share in MARKS], given, facts))
    print(given.out.read_text())
    return None


if __name__ == "__main__":
    main()
