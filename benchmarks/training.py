"""Samples per CPU second of each architecture's training, and what it reaches, beside SAELens' trainer where that is installed.

    python benchmarks/training.py [--architectures standard topk ...] [--samples 500000] [--d 64] [--atoms 256] [--out FILE.md]
                                  [--data ROWS.npy] [--lam 0.15] [--match] [--many 16]

Planted sparse codes on random atoms (float32), or the rows of a file as they are, the same for all. A first run of few steps compiles
and is not counted; then CPU seconds are those of the process (all threads) for `--samples` rows in batches of 1,024. Explained variance,
codes a row and, where the loss is `1/2 ||r||^2 + lam sum f`, twice that (the packages' objective) are measured on rows that were not
trained on. SAELens trains from the same rows, shuffled, with its own defaults but for the learning rate, the batch and the weight (twice
lam, as its loss has no 1/2); without it, or for an architecture that it lacks, its columns say so.

`--match` adds a table at SAELens' number of codes: where a line of the first differs in L0 by more than 3%, the weight (or a k that need
not be whole) is changed by secants of log L0, a run of full length each, until it does not. A matching pursuit SAE is a dictionary and a
rule of stopping: there ours is given SAELens' rule, which also stops where an atom is taken again, with the steps that come nearest.

`--many RUNS` adds a table: so many SAEs, four sparsities of each seed, as one program (`jd.sae.train_batch`) and one after another, with
`--samples` rows each, and how far the weights of the two differ. `--architectures` with nothing after it leaves the other table out.
"""

import argparse
import importlib
import importlib.util
import itertools
import platform
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

import jaxdict as jd
from jaxdict.sae.trainers.asking import ARCHITECTURES, KINDS

BATCH, RATE = 1024, 1e-3
# In units of rows with mean square one.
LAMS = {"standard": 0.05, "gated": 0.05, "p_anneal": 0.03, "jumprelu": 0.004}
K = 8
# Of many runs: sparsities, in units of those above, and the steps of the first look at weights, before rounding has grown.
SHARES, FEW = (0.5, 1.0, 1.5, 2.0), 10
# Numbers of codes that count as one, and the runs that are made for it at most.
NEAR, TRIES = 0.03, 6
HEADER = (
    "| architecture | jaxdict samples a CPU second | CPU s | explained | L0 | objective | "
    "SAELens samples a CPU second | CPU s | explained | L0 | objective |"
)


def planted(n: int, d: int, atoms: int, seed: int = 0):
    """Rows of mean square one about zero: 2 codes in a hundred are on, exponential, on random unit atoms; 1% of noise."""
    draw = np.random.default_rng(seed)
    D = np.random.default_rng(99).normal(size=(atoms, d))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    codes = draw.exponential(size=(n, atoms)) * (draw.uniform(size=(n, atoms)) < 0.02)
    X = codes @ D + 0.01 * draw.normal(size=(n, d))
    return (X / np.sqrt(np.mean(np.sum(X * X, axis=1)))).astype(np.float32)


def usual(name: str) -> dict[str, float]:
    """What makes an architecture sparse here."""
    return {"k": K} if KINDS[name].counts else {"lam": LAMS[name]}


def ours(name: str, X, d_sae: int, samples: int, sparse=None):
    """CPU seconds of training alone, and the SAE."""
    sparse = usual(name) if sparse is None else sparse
    options = {"key": jax.random.key(0), "architecture": name, "batch_size": BATCH, "learning_rate": RATE, **sparse}
    jax.block_until_ready(jd.sae.train(X, d_sae, steps=2, **options))
    begin = time.process_time()
    sae = jax.block_until_ready(jd.sae.train(X, d_sae, steps=samples // BATCH, **options))
    return time.process_time() - begin, sae


def theirs(name: str, X, d_sae: int, samples: int):
    """The same by SAELens, its SAE read back by jaxdict; a reason, as text, where it cannot."""
    if importlib.util.find_spec("sae_lens") is None:
        return "sae-lens is not installed"
    lens, torch = (importlib.import_module(module) for module in ("sae_lens", "torch"))
    sizes = {"d_in": X.shape[1], "d_sae": d_sae, "normalize_activations": "none"}
    steps = samples // BATCH
    configs = {
        "standard": ("Standard", {"l1_coefficient": 2 * LAMS["standard"]}),
        "gated": ("Gated", {"l1_coefficient": 2 * LAMS["gated"]}),
        "jumprelu": ("JumpReLU", {"l0_coefficient": 2 * LAMS["jumprelu"]}),
        "topk": ("TopK", {"k": K}),
        "batchtopk": ("BatchTopK", {"k": K}),
        "matryoshka": (
            "MatryoshkaBatchTopK",
            {"k": K, "matryoshka_widths": [d_sae // part for part in (16, 8, 4, 2, 1)]},
        ),
        "matching_pursuit": ("MatchingPursuit", {"max_iterations": K}),
    }
    if name not in configs or not hasattr(lens, f"{configs[name][0]}TrainingSAE"):
        return "not in this SAELens"
    kind, own = configs[name]
    torch.manual_seed(0)
    sae = getattr(lens, f"{kind}TrainingSAE")(getattr(lens, f"{kind}TrainingSAEConfig")(**sizes, **own))
    draw = np.random.default_rng(0)
    rows = iter(lambda: torch.from_numpy(X[draw.integers(len(X), size=BATCH)]), None)
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    config = SAETrainerConfig(
        n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False, total_training_samples=steps * BATCH, device="cpu",
        autocast=False, lr=RATE, lr_end=0.0, lr_scheduler_name="constant", lr_warm_up_steps=steps // 20, adam_beta1=0.9,
        adam_beta2=0.999, lr_decay_steps=steps // 5, n_restart_cycles=1, train_batch_size_samples=BATCH,
        dead_feature_window=1000, feature_sampling_window=10**9, logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    trainer = SAETrainer(cfg=config, sae=sae, data_provider=rows)
    begin = time.process_time()
    sae = trainer.fit()
    seconds = time.process_time() - begin
    folder = Path(tempfile.mkdtemp()) / "sae"
    sae.save_inference_model(str(folder))
    return seconds, jd.sae.load(folder)


def reached(sae, X) -> tuple[float, float]:
    """Explained variance and codes a row, on fresh rows."""
    f, r = np.asarray(sae.encode(X)), X - np.asarray(sae(X))
    return 1 - float(np.sum(r * r) / np.sum((X - X.mean(0)) ** 2)), float(np.mean(np.sum(f != 0, axis=1)))


def judged(name: str, sae, X) -> str:
    """Both, and the objective."""
    f, r, (explained, l0) = np.asarray(sae.encode(X)), X - np.asarray(sae(X)), reached(sae, X)
    penalty = 2 * LAMS["standard"] * np.sum(f * np.linalg.norm(sae.W_dec, axis=1), axis=1)
    objective = f"{np.mean(np.sum(r * r, axis=1) + penalty):.4f}" if name == "standard" else "-"
    return f"{explained:.4f} | {l0:.2f} | {objective}"


def line(name: str, found, samples: int, fresh) -> str:
    """The part of a table's line that one trainer fills."""
    if isinstance(found, str):
        return f"{found} | - | - | - | -"
    seconds, sae = found
    return f"{samples / seconds:,.0f} | {seconds:.1f} | {judged(name, sae, fresh)}"


def at_their_number(name: str, found, X, d_sae: int, samples: int, fresh) -> tuple[dict[str, float], object]:
    """What makes an SAE of ours as sparse as theirs, and that SAE; `found` has ours with the usual number, and theirs."""
    (_, sae), (_, wanted) = found
    l0 = reached(wanted, fresh)[1]
    if name == "matching_pursuit":
        each = {k: replace(sae, activation=replace(wanted.activation, k=k)) for k in range(K // 2, 2 * K + 1)}
        k = min(each, key=lambda k: abs(reached(each[k], fresh)[1] - l0))
        return {"k": k}, each[k]
    ((which, number),), tried = usual(name).items(), []
    slope = 1.0 if which == "k" else -1.0
    while True:
        off = float(np.log(reached(sae, fresh)[1] / l0))
        tried.append((float(np.log(number)), off))
        if abs(np.expm1(off)) <= NEAR or len(tried) == TRIES:
            return {which: number}, sae
        if len(tried) > 1:
            (before, was), (now, off) = tried[-2:]
            slope = (off - was) / (now - before) or slope
        number = float(np.exp(tried[-1][0] + np.clip(-off / slope, -2, 2)))
        _, sae = ours(name, X, d_sae, samples, {which: number})


def match_lines(found, X, d_sae: int, samples: int, fresh):
    """The table at SAELens' number of codes, a line at a time."""
    yield from ("", "## At SAELens' number of codes", "")
    yield "| architecture | ours by | L0 | explained | SAELens by | L0 | explained | ours less theirs |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, both in found.items():
        if isinstance(both[1], str):
            continue
        sparse, sae = at_their_number(name, both, X, d_sae, samples, fresh)
        by = ["{} {:.4g}".format(*one) for numbers in (sparse, usual(name)) for one in numbers.items()]
        (explained, l0), (theirs, their_l0) = reached(sae, fresh), reached(both[1][1], fresh)
        yield (
            f"| {name} | {by[0]} | {l0:.2f} | {explained:.4f} | {by[1]} | {their_l0:.2f} | {theirs:.4f} | {explained - theirs:+.4f} |"
        )


def sparsities(name: str, runs: int) -> dict[str, list]:
    """The number of active features or the weight of each run; a seed has one of each before the next seed has its first."""
    shares = [SHARES[run % len(SHARES)] for run in range(runs)]
    if KINDS[name].counts:
        return {"k": [max(1, round(K * share)) for share in shares]}
    return {"lam": [LAMS[name] * share for share in shares]}


def timed(train, steps: int):
    """CPU seconds, wall seconds and the SAEs of so many steps."""
    cpu, wall = time.process_time(), time.perf_counter()
    saes = jax.block_until_ready(train(steps))
    return time.process_time() - cpu, time.perf_counter() - wall, saes


def apart(first, second) -> float:
    """The largest difference of two lists of SAEs' weights, over the largest number of its array."""
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    arrays = [(np.asarray(one, float), np.asarray(other, float)) for one, other in pairs]
    return max(float(np.max(np.abs(one - other)) / max(np.max(np.abs(one)), 1e-30)) for one, other in arrays)


def together_and_one_by_one(name: str, X, d_sae: int, samples: int, runs: int) -> str:
    """A table's line: samples of all runs a CPU second and a wall second, as one program and one by one, and how far weights differ."""
    options = {"architecture": name, "batch_size": BATCH, "learning_rate": RATE}
    seeds = jax.random.split(jax.random.key(0), -(-runs // len(SHARES)))
    keys, sparse = seeds[np.arange(runs) // len(SHARES)], sparsities(name, runs)

    def together(steps):
        return jd.sae.train_batch(X, d_sae, keys=keys, steps=steps, **sparse, **options)

    def one_by_one(steps):
        each = [{key: values[run] for key, values in sparse.items()} for run in range(runs)]
        return [
            jd.sae.train(X, d_sae, key=key, steps=steps, **one, **options) for key, one in zip(keys, each, strict=True)
        ]

    early = apart(one_by_one(FEW), together(FEW))  # compiles both
    found = [timed(train, samples // BATCH) for train in (together, one_by_one)]
    rates = [f"{runs * samples / seconds:,.0f}" for *both, _ in found for seconds in both]
    return f"| {name} | {' | '.join(rates)} | {early:.1e} | {apart(found[1][2], found[0][2]):.1e} |"


def many_lines(X, d_sae: int, samples: int, runs: int):
    """The table of many runs, a line at a time."""
    yield ""
    yield "## Many runs as one program"
    yield ""
    yield (
        f"{runs} SAEs of an architecture, seeds x sparsities ({', '.join(f'{share:g}' for share in SHARES)} times the above), {samples:,} "
        "samples each: as one program (`jd.sae.train_batch`) and one after another (`jd.sae.train`), compiled before. Each SAE is that of "
        "its own run up to the order of sums: the largest difference of a weight, over the largest of its array, is told after "
        f"{FEW} steps and at the end, since rounding (float32) grows with steps, and where codes are counted it may turn a choice over."
    )
    yield ""
    yield (
        "| architecture | one program: samples a CPU second | a second | one by one: samples a CPU second | a second | "
        f"difference after {FEW} steps | at the end |"
    )
    yield "|---|---|---|---|---|---|---|"
    for name in ("standard", "topk"):
        yield together_and_one_by_one(name, X, d_sae, samples, runs)


def main(given=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", nargs="*", default=list(ARCHITECTURES), choices=ARCHITECTURES)
    parser.add_argument("--samples", type=int, default=500_000)
    parser.add_argument("--d", type=int, default=64)
    parser.add_argument("--atoms", type=int, default=256)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--data", type=Path, help=".npy rows, the last 4,096 of which are kept aside")
    parser.add_argument("--lam", type=float, default=LAMS["standard"], help="of the standard SAE")
    parser.add_argument("--match", action="store_true", help="a table at SAELens' number of codes")
    parser.add_argument("--many", type=int, default=0, help="runs as one program and one by one (default: left out)")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(given)
    LAMS["standard"] = asked.lam
    if asked.data is None:
        X, fresh = planted(asked.rows, asked.d, asked.atoms), planted(4096, asked.d, asked.atoms, seed=1)
    else:
        rows = np.load(asked.data).astype(np.float32)
        X, fresh = rows[:-4096], rows[-4096:]
    samples = asked.samples // BATCH * BATCH
    lines = [
        "# Training: samples per CPU second, and what they reach",
        "",
        f"{platform.machine()}, jax {jax.__version__}, d = {X.shape[1]}, {asked.atoms} latents, {samples:,} samples in batches of {BATCH}, "
        f"k = {K}, lam {LAMS}. Made by `python benchmarks/training.py`.",
    ]
    if asked.architectures:
        lines += ["", HEADER, "|---|---|---|---|---|---|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    found = {}
    for name in asked.architectures:
        found[name] = [trainer(name, X, asked.atoms, samples) for trainer in (ours, theirs)]
        lines.append(f"| {name} | " + " | ".join(line(name, one, samples, fresh) for one in found[name]) + " |")
        print(lines[-1], flush=True)
    matched = match_lines(found, X, asked.atoms, samples, fresh) if asked.match else ()
    many = many_lines(X, asked.atoms, samples, asked.many) if asked.many > 0 else ()
    for text in itertools.chain(matched, many):
        lines.append(text)
        print(text, flush=True)
    if asked.out is not None:
        asked.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
