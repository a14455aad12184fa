"""Growth beside fits from scratch: the objective on fresh rows at the same CPU time, width by width, in one run.

    python benchmarks/growth.py [ACTS.npy] [--rows 20000] [--fresh 20000] [--widths 64,128,256,512,1024] [--lam 0.15] [--out FILE.md]

ACTS is a .npy file of activations (rows, d); without it the embedded ones are taken, with few rows and widths. `--fresh` rows at the end
of the file are for judging only; `--rows` others, drawn from those before, are centred, divided by their root mean square norm (so are
the fresh ones, by the same numbers) and fitted in float32.

The path is one call of `jaxdict.grow` through all widths, none of its rows kept aside. Each other run is a process of its own, which
compiles what it needs as the path does (what stands in the folder is not run again): `jaxdict.fit` from data at a width, stopped at the
CPU time (user and system, all threads, compiling included) that the path had taken when it had that width, or where it is stationary to
`--tol` before; and one at the last width to `--tol`, which is what growth is compared with for cost. A fit that stalls above `--tol` goes
on from its point, at most three times; what both sides reached stands in the table. Dictionaries are judged alike: exact
codes of the fresh rows, differences row by row, rows of one block of 256 taken as dependent.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from streams import judged, mean_and_error

BLOCK = 256
# Fits that stall above the tolerance go on from where they are, so often.
AGAIN = 3


class Over(Exception):
    """The budget is spent."""


def prepared(given) -> Path:
    """Training and fresh rows in a file of their own."""
    if given.acts is None:
        import jaxdict as jd

        stored = jd.datasets.load("minilm_tokens").X
    else:
        stored = np.load(given.acts, mmap_mode="r")
    fresh = min(given.fresh, len(stored) // 4)
    before = len(stored) - fresh
    drawn = np.sort(np.random.default_rng(given.seed).permutation(before)[: given.rows])
    rows = np.asarray(stored[drawn], float)
    centre = rows.mean(0)
    size = np.sqrt(((rows - centre) ** 2).sum(1).mean())
    path = given.folder / "rows.npz"
    np.savez(
        path,
        training=((rows - centre) / size).astype(np.float32),
        fresh=((stored[before:] - centre) / size).astype(np.float32),
    )
    return path


def one(given) -> None:
    """The path, or a fit from scratch at one width, in this process; dictionaries and CPU seconds go to the folder."""
    import jax

    import jaxdict as jd

    X, problem = np.load(given.folder / "rows.npz")["training"], jd.Problem(lam=given.lam)
    key, steps = jax.random.key(given.seed), []

    def keep(name, dictionary, **facts):
        steps.append({"name": name, "cpu": time.process_time(), **facts})
        np.savez(given.folder / f"{name}.npz", atoms=dictionary.atoms, offset=dictionary.offset)

    if given.one == "path":

        def callback(told):
            if told.fit is None:
                step = told.steps[-1]
                keep(f"path-{step.width}", step.dictionary, width=step.width, stationarity=step.stationarity)

        widths = [int(width) for width in given.widths.split(",")]
        options = {"held_out": 0, "tol": given.tol, "rough": given.rough, "callback": callback}
        jd.grow(problem, X, widths, key=key, **options)
    else:
        budget = given.seconds or float("inf")

        def callback(told):
            if time.process_time() > budget:
                raise Over

        taken, again = 0, 0
        start: dict[str, Any] = {"n_atoms": int(given.one), "key": key}
        while True:
            try:
                found, over = jd.fit(problem, X, **start, tol=given.tol, sparse=True, callback=callback), False
            except Over as stopped:
                found, over = stopped.solution, True
            taken += int(found.steps)
            worst = float(found.certificate.stationarity.worst)
            if over or worst <= given.tol or again == AGAIN:
                break
            start, again = {"start": found.dictionary}, again + 1
        name = f"scratch-{given.one}" + ("" if given.seconds else "-whole")
        facts = {"steps": taken, "stationarity": worst, "over": over, "again": again}
        keep(name, found.dictionary, width=int(given.one), **facts)
    (given.folder / f"{given.one}{'' if given.seconds or given.one == 'path' else '-whole'}.json").write_text(
        json.dumps(steps)
    )


def compared(given) -> tuple[list[dict], dict]:
    """All runs, then a row a width."""

    def run(name, seconds=0.0):
        kept = given.folder / f"{name}{'' if seconds or name == 'path' else '-whole'}.json"
        if kept.exists():  # of a run that was stopped
            return json.loads(kept.read_text())
        arguments = [f"--{key}={getattr(given, key)}" for key in ("lam", "tol", "rough", "widths", "seed", "folder")]
        subprocess.run([sys.executable, __file__, *arguments, "--one", str(name), f"--seconds={seconds}"], check=True)
        return json.loads(kept.read_text())

    rows = np.load(given.folder / "rows.npz")["fresh"]
    groups = np.arange(len(rows)) // BLOCK

    def values(name):
        with np.load(given.folder / f"{name}.npz") as kept:
            return judged(kept["atoms"], kept["offset"], rows, groups, given.lam)

    table, steps = [], run("path")
    for step in steps:
        scratch = run(step["width"], step["cpu"])[0]
        mine, others = values(step["name"]), values(scratch["name"])
        gain = mean_and_error(others[0] - mine[0], groups)
        told = {
            "width": step["width"],
            "cpu": step["cpu"],
            "scratch_cpu": scratch["cpu"],
            "scratch_steps": scratch["steps"],
            "stationarity": step["stationarity"],
            "scratch_stationarity": scratch["stationarity"],
        }
        table.append(
            told
            | {"grown": mean_and_error(mine[0], groups), "scratch": mean_and_error(others[0], groups), "gain": gain}
        )
        print(table[-1], flush=True)
    # The run within the path's time is the whole one where it came to its end.
    whole = scratch if not scratch["over"] else run(steps[-1]["width"])[0]
    mine = mean_and_error(values(whole["name"])[0], groups)
    facts = {
        "path": steps[-1]["cpu"],
        "whole": whole["cpu"],
        "whole_objective": mine,
        "ratio": steps[-1]["cpu"] / whole["cpu"],
    }
    reached = {"stationarity": [steps[-1]["stationarity"], whole["stationarity"]], "again": whole["again"]}
    return table, facts | {"fresh": len(rows)} | reached


def report(table, facts, given) -> str:
    """What was measured."""
    lines = [
        "# Growth", "", f"`python benchmarks/growth.py`, {facts['date']}, {facts['cores']} cores, load {facts['load']} at the start: "
        f"{given.rows:,} training rows, judged on {facts['fresh']:,} fresh ones; lam = {given.lam:g}, tol = {given.tol:g}, widths on the "
        f"way to {given.rough:g}. CPU seconds with compiling; objective on the fresh rows with its standard error; what the grown "
        "dictionary gains over the one from scratch at the same CPU time, row by row.", "",
        "| atoms | CPU seconds so far | grown | stationarity | from scratch | stationarity | CPU seconds, steps | gain |",
        "|" + " --- |" * 8,
    ]  # fmt: skip
    for row in table:
        both = [f"{mean:.5f} +- {error:.1g}" for mean, error in (row["grown"], row["scratch"])]
        gain = f"{row['gain'][0]:.5f} +- {row['gain'][1]:.1g}"
        scratch = f"{row['scratch_stationarity']:.2g} | {row['scratch_cpu']:.0f}, {row['scratch_steps']}"
        lines.append(
            f"| {row['width']} | {row['cpu']:.0f} | {both[0]} | {row['stationarity']:.2g} | {both[1]} | {scratch} | {gain} |"
        )
    mean, error = facts["whole_objective"]
    lines += [
        "", f"A fit from scratch at the last width took {facts['whole']:.0f} CPU seconds ({mean:.5f} +- "
        f"{error:.1g}); "
        f"the whole path took {facts['ratio']:.2f} times that (worst stationarity at the end: path {facts['stationarity'][0]:.2g}, "
        f"from scratch {facts['stationarity'][1]:.2g}; restarts where it stalled: {facts['again']}).",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("acts", type=Path, nargs="?")
    parser.add_argument("--rows", type=int, default=20000)
    parser.add_argument("--fresh", type=int, default=20000)
    parser.add_argument("--widths", default="64,128,256,512,1024")
    parser.add_argument("--lam", type=float, default=0.15)
    parser.add_argument("--tol", type=float, default=1e-2)
    parser.add_argument("--rough", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--folder", type=Path, default=Path("growth"), help="for the rows and the dictionaries")
    parser.add_argument("--seconds", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.one:
        return one(given)
    given.folder.mkdir(parents=True, exist_ok=True)
    prepared(given)
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "cores": len(os.sched_getaffinity(0)),
        "load": f"{os.getloadavg()[0]:.1f}",
    }
    table, found = compared(given)
    given.out.with_suffix(".json").write_text(json.dumps({"table": table, "facts": facts | found}, indent=1) + "\n")
    text = report(table, facts | found, given)
    given.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
