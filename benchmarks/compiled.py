"""What a TPU's own compiler makes of every public numeric function, on a machine that has none: memory, work, and what chips exchange.

    python benchmarks/compiled.py [--part large|all] [--chips 1|8] [--platform tpu|cpu] [--only WORDS] [--out FILE.md]

libtpu compiles for a slice that is only described (v5e, 2 x 4 chips); `--platform cpu` takes simulated devices of this machine instead.
Nothing runs. The calls are those of `tests/matrix/public_cases.py` at its tiny sizes (`all`), and a few at sizes that are worth a chip
(`large`), float32. Rows are kept in a .json beside the table and not measured anew (unless `--again`), so that parts may be measured one
after another, and a run that was stopped goes on; a row with 8 chips has its samples spread over them. The table's last part, its notes, is
written by hand and kept.

`flops` and `bytes` are the compiler's own count, which takes each loop once. `products` are the multiplications and additions of matrix
products in the program as it was traced, loops of known length by their steps, others once: what one round of each takes.
The roofline is the time that flops or bytes need at the chip's peak, whichever is longer. Collectives: kinds, how many, and the
largest array that one of them moves. "Placed by the compiler": on Auto axes under jit the package tells a compiler how samples are to be
split where it asks (`jax.experimental.custom_partitioning`); a TPU's does not ask, and may bring rows together where a CPU's would not.
"""

import argparse
import inspect
import itertools
import json
import math
import os
import re
import sys
import time
from pathlib import Path
from unittest import mock

# There is no chip, so no metadata server to ask and no lock on one to take.
os.environ.update(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxdict as jd
from jaxdict.encoding import engines

TOPOLOGY = "v5e:2x4"
# Of one v5e chip: float32 products at the highest precision are six passes of bfloat16 at 197 Tflop/s; memory at 819 GB/s.
FLOPS, BYTES = 197e12 / 6, 819e9
COLLECTIVES = (
    "all-gather|all-reduce|all-to-all|collective-permute|collective-broadcast|reduce-scatter|ragged-all-to-all"
)
CASES = Path(__file__).parent.parent / "tests" / "matrix" / "public_cases.py"
PLACES = {"tpu": f"TPU v5e by libtpu, topology {TOPOLOGY}", "cpu": "simulated devices of a CPU, plain JAX"}
PARTS = {"large": "at sizes worth a chip", "all": "cases of the matrix, tiny"}
NOTES = "\n## Notes\n"
ASKS = "custom_partitioning"
HEAD = (
    "| call | chips | compiled in, s | code, MB | temporaries, MB | loops | Gflop | Gflop of products | GB | roofline, ms | exchanged |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
)


def form(*shape, dtype=np.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def large() -> dict:
    """Calls worth a chip: what is called, and the forms of its arguments; those with `rows` samples are spread."""

    def point(n, k, d, slots):
        codes = jd.SparseCodes(form(n, slots, dtype=np.int32), form(n, slots))
        return jd.Dictionary(form(k, d), form(d)), codes, form(n, d)

    problem = jd.Problem(lam=0.3)
    options = {"tol": 1e-6, "max_steps": 100, "sparse": True}
    wide, middle = point(8192, 16_384, 768, 64), point(16_384, 2048, 256, 64)
    return {
        "encode, 16,384 atoms": (lambda D, Z, X: jd.encode(problem, D, X, sparse=True), wide, 8192),
        "encode, 2,048 atoms": (lambda D, Z, X: jd.encode(problem, D, X, sparse=True), middle, 16_384),
        "certify, 2,048 atoms": (lambda D, Z, X: jd.certify(problem, D, Z, X), middle, 16_384),
        "wide.bound, 65,536 rows": (lambda X: jd.wide.bound(X, 0.3), (form(65_536, 768),), 65_536),
        "conditions.pairs, 2,048 atoms": (lambda D, Z, X: jd.conditions.pairs(D, Z), middle, 16_384),
        "conditions.barycentre, 2,048 atoms": (
            lambda D, Z, X: jd.conditions.barycentre(problem, D, Z, X),
            middle,
            16_384,
        ),
        "fit, sparse, 2,048 atoms": (lambda D, Z, X: jd.fit(problem, X, start=D, **options), middle, 16_384),
    }


def small() -> dict:
    """Every case of the matrix that can be one program, and why others cannot."""
    sys.path.insert(0, str(CASES.parent))
    cases = __import__(CASES.stem)
    values, found = cases.inputs(np.float32), {}
    for name, case in cases.CASES.items():
        forms = {
            key: jax.eval_shape(lambda value=values[key]: value) for key in inspect.signature(case.call).parameters
        }
        names, call = list(forms), case.call
        run = lambda *args, names=names, call=call: call(**dict(zip(names, args, strict=True)))  # noqa: E731
        found[name] = (run, tuple(forms.values()), cases.SAMPLES) if "jit" not in case.holes else case.holes["jit"]
    return found


def devices_of(platform: str) -> list:
    if platform == "cpu":
        return jax.devices("cpu")
    return list(topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices)


def placed(tree, mesh: Mesh, rows: int):
    """Forms on the mesh, those with so many rows spread over it."""

    def one(leaf):
        spec = P("samples") if leaf.shape[:1] == (rows,) else P()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(one, tree)


def measured(call, forms, rows: int, devices, platform: str) -> dict:
    """One program compiled: the figures of its row."""
    mesh = Mesh(np.array(devices), ("samples",))
    # As on the machine that it is for: plain JAX, blocks of an accelerator's size.
    with (
        mock.patch.object(jax, "default_backend", return_value=platform),
        mock.patch.object(engines, "kernels", return_value=None),
    ):
        traced = jax.jit(call).trace(*placed(forms, mesh, rows))
        begin = time.perf_counter()
        program = traced.lower(lowering_platforms=(platform,)).compile()
    seconds, text = time.perf_counter() - begin, program.as_text()
    memory, cost = program.memory_analysis(), program.cost_analysis() or {}
    return {
        "seconds": seconds,
        "code": memory.generated_code_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "loops": len(re.findall(r" while\(", text)),
        "flops": cost.get("flops", math.nan),
        "bytes": cost.get("bytes accessed", math.nan),
        "products": products(traced.jaxpr.jaxpr) / len(devices),
        "exchanged": exchanged(text),
        "placed": len(devices) > 1 and platform == "tpu" and ASKS in str(traced.jaxpr),
    }


def exchanged(text: str) -> dict:
    """Collectives of a compiled program by kind: how many, and the entries of the largest array that one moves."""
    found: dict = {}
    for out, kind in re.findall(rf"= (\S.*?) ({COLLECTIVES})(?:-start)?\(", text):
        sizes = [math.prod(int(n) for n in shape.split(",") if n) for shape in re.findall(r"\w+\[([\d,]*)\]", out)]
        count, largest = found.get(kind, (0, 0))
        found[kind] = (count + 1, max([largest, *sizes]))
    return found


def products(jaxpr) -> float:
    """Flops of all matrix products: loops of known length by their steps, others once; of branches the dearest."""
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
            total += 2.0 * depth * math.prod(eqn.outvars[0].aval.shape)
            continue
        inner = [
            getattr(p, "jaxpr", p)
            for p in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr)
            if _is_jaxpr(p)
        ]
        costs = [products(one) for one in inner]
        if costs:
            total += max(costs) if eqn.primitive.name == "cond" else eqn.params.get("length", 1) * sum(costs)
    return total


def _is_jaxpr(value) -> bool:
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")


def line(name: str, chips: int, row: dict) -> str:
    if "why" in row:
        return f"| {name} | {chips} | {row['why']} |" + " |" * 8
    floor = 1e3 * max(row["flops"] / FLOPS, row["bytes"] / BYTES)
    bound = "memory" if row["bytes"] / BYTES > row["flops"] / FLOPS else "products"
    moved = ", ".join(f"{count} {kind}, {largest:,} at most" for kind, (count, largest) in row["exchanged"].items())
    moved = (moved or "nothing") + ("; placed by the compiler" if row.get("placed") else "")
    figures = f"{row['seconds']:.1f} | {row['code'] / 1e6:.1f} | {row['temporaries'] / 1e6:,.1f} | {row['loops']}"
    work = f"{row['flops'] / 1e9:.3g} | {row['products'] / 1e9:.3g} | {row['bytes'] / 1e9:.3g} | {floor:.3g} ({bound})"
    return f"| {name} | {chips} | {figures} | {work} | {moved} |"


def table(rows: dict, before: str = "") -> str:
    """The whole file from all rows that were ever measured, with the notes that stood in it before."""
    about = f"`python benchmarks/compiled.py`, jax {jax.__version__}, float32: its docstring says what the columns are."
    parts = ["# What compilers make of the public functions", about]
    for (platform, where), (part, what) in itertools.product(PLACES.items(), PARTS.items()):
        mine = {tuple(key.split("/", 3)): row for key, row in rows.items() if key.startswith(f"{platform}/{part}/")}
        if mine:
            lines = [line(name, int(chips), row) for (_, _, chips, name), row in mine.items()]
            parts += [f"## {where}: {what}", "\n".join([*HEAD, *lines])]
    _, notes, text = before.partition(NOTES)
    return "\n\n".join(parts) + "\n" + notes + text


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=tuple(PARTS), default="large")
    parser.add_argument("--chips", type=int, choices=(1, 8), default=1)
    parser.add_argument("--platform", choices=tuple(PLACES), default="tpu")
    parser.add_argument("--only", default="")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    args = parser.parse_args(arguments)
    kept = args.out.with_suffix(".json")
    rows = json.loads(kept.read_text()) if kept.exists() else {}
    if args.platform == "cpu" and args.chips > 1:
        jax.config.update("jax_num_cpu_devices", args.chips)
    jax.config.update("jax_enable_x64", False)
    devices = devices_of(args.platform)[: args.chips]
    for name, case in (large() if args.part == "large" else small()).items():
        key = f"{args.platform}/{args.part}/{args.chips}/{name}"
        if not re.search(args.only, name) or (key in rows and not args.again):
            continue
        rows[key] = row = {"why": case} if isinstance(case, str) else attempt(*case, devices, args.platform)
        print(line(name, args.chips, row), flush=True)
        kept.write_text(json.dumps(rows, indent=1) + "\n")
        args.out.write_text(table(rows, args.out.read_text() if args.out.exists() else ""))


def attempt(call, forms, rows, devices, platform) -> dict:
    """The figures, or why there are none."""
    try:
        return measured(call, forms, rows, devices, platform)
    except Exception as error:  # a table tells of every failure
        return {"why": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}


if __name__ == "__main__":
    main()
