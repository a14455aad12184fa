"""SynthSAEBench by jaxdict and by SAELens: one saved model drawn from by both, one SAE scored by both.

    python benchmarks/synth_bench.py [--features 256] [--d 64] [--rows 65536] [--out FILE.md]

A model is made by key and saved; both read the folder. Of each one's rows: features on in a row, the mean size of what is on, the
variance, and of all features' firing rates the largest difference in binomial standard errors of the two samples together (of some
hundreds about 3 to 4 is what chance gives). CPU seconds of the process for the draw, after a first of one batch. Then a tied SAE of
the true atoms, noise added, is written in SAELens' format and scored by both on rows of their own. Without SAELens its columns say so.
"""

import argparse
import importlib.util
import platform
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

import jaxdict as jd
from jaxdict import synthetic

BATCH = 1024
LAM = 0.15


def made(n_features: int, d: int):
    """A model with every part: hierarchy with exclusion, compensation and scaling, copula, orthogonalised atoms, sizes that vary."""
    forest = synthetic.Forest(
        roots=max(n_features // 16, 1), branching=3, depth=2, exclusive=0.5, compensate=True, scale_by_parent=True
    )
    return synthetic.bench_model(
        jax.random.key(0), n_features, d, firing=synthetic.firing.Zipfian(0.5, 0.2, 0.005), means=synthetic.sizes.Linear(2.0, 1.0),
        spreads=0.2, forest=forest, orthogonal=synthetic.Orthogonal(100, 0.01), correlation=synthetic.LowRank(8, 0.1), offset=0.5,
    )  # fmt: skip


def ours(folder, sae_folder, rows: int):
    """CPU seconds, rows, codes and metrics."""
    model, sae = synthetic.load_bench_model(folder), jd.sae.load(sae_folder)
    jax.block_until_ready(synthetic.bench_sample(jax.random.key(1), model, BATCH))
    begin = time.process_time()
    batches = [
        jax.block_until_ready(synthetic.bench_sample(key, model, BATCH))
        for key in jax.random.split(jax.random.key(2), rows // BATCH)
    ]
    seconds = time.process_time() - begin
    sums = [jd.recovery.bench_sums(sae, batch) for batch in batches]
    total = jax.tree.map(lambda *parts: sum(parts), *sums)
    scores = jd.recovery.bench_metrics_from_sums(sae, model.dictionary, total)._asdict()
    X, codes = (np.concatenate([np.asarray(getattr(batch, name)) for batch in batches]) for name in ("X", "codes"))
    return seconds, X, codes, {name: float(value) for name, value in scores.items()}


def theirs(folder, sae_folder, rows: int):
    """The same by SAELens; a reason, as text, where it cannot."""
    if importlib.util.find_spec("sae_lens") is None:
        return "sae-lens is not installed"
    import torch
    from sae_lens import SAE
    from sae_lens.synthetic import SyntheticModel, eval_sae_on_synthetic_data

    model = SyntheticModel.load_from_disk(str(folder))
    torch.manual_seed(0)
    model.sample_with_features(BATCH)
    begin = time.process_time()
    batches = [model.sample_with_features(BATCH) for _ in range(rows // BATCH)]
    seconds = time.process_time() - begin
    X, codes = (np.concatenate([pair[part].numpy() for pair in batches]) for part in range(2))
    sae = SAE.load_from_disk(str(sae_folder))
    result = eval_sae_on_synthetic_data(
        sae, model.feature_dict, model.activation_generator, num_samples=rows, batch_size=BATCH
    )
    told = result.to_log_dict()
    return seconds, X, codes, {name.rpartition("/")[2]: float(value) for name, value in told.items()}


def described(found, rows: int) -> dict[str, float]:
    """What is compared of one sampler."""
    seconds, X, codes, scores = found
    return {
        "CPU seconds of the draw": seconds,
        "features on in a row": (codes > 0).sum(axis=1).mean(),
        "mean size of what is on": codes[codes > 0].mean(),
        "variance of a row": ((X - X.mean(axis=0)) ** 2).sum(axis=1).mean(),
        **scores,
    }


def farthest(first, second) -> float:
    """The largest difference of two samples' firing rates, in standard errors of both."""
    rates = [(found[2] > 0).mean(axis=0) for found in (first, second)]
    spread = sum(rate * (1 - rate) / len(found[2]) for rate, found in zip(rates, (first, second), strict=True))
    return float(np.max(np.abs(rates[0] - rates[1]) / np.sqrt(np.maximum(spread, 1e-12))))


def noisy_truth(model, folder) -> Path:
    """A tied SAE whose atoms are near the true ones, half as many, with a copy among them."""
    draw = np.random.default_rng(0)
    atoms = np.asarray(model.dictionary.atoms)[: len(model.means) // 2]
    atoms = atoms + 0.5 / np.sqrt(atoms.shape[1]) * draw.normal(size=atoms.shape)
    atoms[-1] = atoms[0]
    atoms = (atoms / np.linalg.norm(atoms, axis=1, keepdims=True)).astype(np.float32)
    return jd.sae.save(jd.Dictionary(atoms, np.asarray(model.dictionary.offset)), folder, lam=LAM)


def main(given=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--d", type=int, default=64)
    parser.add_argument("--rows", type=int, default=65536)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(given)
    rows, model = asked.rows // BATCH * BATCH, made(asked.features, asked.d)
    with tempfile.TemporaryDirectory() as place:
        folder = synthetic.save_bench_model(model, Path(place) / "model")
        sae_folder = noisy_truth(model, Path(place) / "sae")
        found = [sampler(folder, sae_folder, rows) for sampler in (ours, theirs)]
    told = [{} if isinstance(one, str) else described(one, rows) for one in found]
    lines = [
        "# SynthSAEBench: one model, drawn and scored by two",
        "",
        f"{platform.machine()}, jax {jax.__version__}, {asked.features} features, d = {asked.d}, {rows:,} rows in batches of {BATCH}. "
        "Made by `python benchmarks/synth_bench.py`.",
        "",
        "| | jaxdict | SAELens |",
        "|---|---|---|",
        *(
            f"| {name} | {value:.5g} | {f'{told[1][name]:.5g}' if name in told[1] else found[1] if not told[1] else '-'} |"
            for name, value in told[0].items()
        ),
    ]
    if told[1]:
        lines += [
            "",
            f"Firing rates: at most {farthest(*found):.2f} standard errors apart, over {asked.features} features.",
        ]
    print("\n".join(lines), flush=True)
    if asked.out is not None:
        asked.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
