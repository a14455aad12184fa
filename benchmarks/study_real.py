"""SAEs of every architecture on real activations: where each loses its error, side by side, on rows that none was trained on.

    python benchmarks/study_real.py ACTS.npy [--documents FILE.npy] [--atoms 1024] [--steps 1500] [--batch 256] [--folder study]

ACTS is a .npy file of activations (rows, d). The documents (a row's number each; blocks of 256 rows where none are given) are parted:
nine tenths to train, the rest to judge. Rows are centred and divided by the root mean square norm of those for training. Each architecture
is trained at three sparsities from two seeds, six SAEs as one program, into FOLDER/ARCHITECTURE-SPARSITY-SEED; what is there is not
trained again. Beside them stand dictionaries of problem P from `jaxdict.fit_stream`, one for each lam of the standard SAEs, with
exact codes. Then `jaxdict.arbitrate` compares all at one L0.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from streams import mean_and_error

import jaxdict as jd
from jaxdict.sae.trainers.asking import ARCHITECTURES, KINDS

# Sparsities: k, or the lam that gave about as many codes in a short run.
COUNTS = (16, 32, 64)
LAMS = {
    "standard": (0.1, 0.06, 0.035), "gated": (0.14, 0.08, 0.045), "p_anneal": (0.08, 0.045, 0.025), "jumprelu": (0.004, 0.0015, 0.0007),
}  # fmt: skip
SEEDS = 2


def prepared(given):
    """Rows for training, rows for judging and the documents of these; float32."""
    stored = np.load(given.acts, mmap_mode="r")
    documents = np.arange(len(stored)) // 256 if given.documents is None else np.load(given.documents)
    names = np.unique(documents)
    aside = np.random.default_rng(0).permutation(names)[: max(len(names) // 10, 2)]
    judging = np.isin(documents, aside)
    X = np.asarray(stored[~judging], np.float32)
    centre = X.mean(0)
    size = np.sqrt(((X - centre) ** 2).sum(1).mean())
    return (X - centre) / size, (np.asarray(stored[judging], np.float32) - centre) / size, documents[judging]


def sparsities(name: str) -> tuple:
    return COUNTS if KINDS[name].counts else LAMS[name]


def train_all(name: str, X, given) -> None:
    """All SAEs of an architecture, saved."""
    asked = [(value, seed) for value in sparsities(name) for seed in range(SEEDS)]
    folders = [given.folder / f"{name}-{value:g}-{seed}" for value, seed in asked]
    if all(folder.exists() for folder in folders):
        return
    begin = time.process_time()
    sparse = {"k" if KINDS[name].counts else "lam": [value for value, _ in asked]}
    keys = jax.vmap(jax.random.key)(np.array([seed for _, seed in asked]))
    saes = jd.sae.train_batch(
        X, given.atoms, keys=keys, architecture=name, steps=given.steps, batch_size=given.batch,
        dead_steps=max(given.steps // 5, 1), **sparse,
    )  # fmt: skip
    seconds = time.process_time() - begin
    for sae, folder in zip(saes, folders, strict=True):
        jd.sae.save(sae, folder)
    print(
        f"{name}: {len(saes)} SAEs in {seconds:.0f} CPU s, {len(saes) * given.steps * given.batch / seconds:,.0f} samples a CPU second",
        flush=True,
    )
    with (given.folder / "cost.jsonl").open("a") as out:
        out.write(json.dumps({"architecture": name, "cpu": seconds}) + "\n")


def dictionaries(X, given) -> dict:
    """Dictionaries of problem P, one for each lam, each from a process's time of its own; what is there is not fitted again."""
    found = {}
    for lam in given.dictionaries:
        path = given.folder / f"dictionary-{lam:g}.npz"
        if not path.exists():
            begin = time.process_time()
            solver = jd.solvers.Online(epochs=given.epochs)
            fitted = jd.fit_stream(
                jd.Problem(lam=lam), X, given.atoms, key=jax.random.key(0), solver=solver, passes=given.passes
            )
            print(f"P at lam {lam:g}: {time.process_time() - begin:.0f} CPU s; {fitted.message()}", flush=True)
            np.savez(
                path, atoms=fitted.dictionary.atoms, offset=fitted.dictionary.offset, cpu=time.process_time() - begin
            )
        with np.load(path) as kept:
            found[lam] = jd.Dictionary(jnp.asarray(kept["atoms"]), jnp.asarray(kept["offset"]))
    return found


def same_supports(named: dict, rows, k: int) -> dict:
    """Squared error of each row where every dictionary may choose k atoms a row, found in the same way."""
    told = {}
    for name, dictionary in named.items():
        codes = jd.best_subset(dictionary, rows, np.full(len(rows), k)).codes
        r = np.asarray(jd.residual(dictionary, codes, rows))
        told[name] = np.sum(r * r, axis=1)
    return told


def choice_table(saes: dict, fitted: dict, rows, documents, k: int) -> tuple[list[str], dict]:
    """Every decoder and dictionary of P with the same number of freely chosen atoms, best first; what more is paired with the first."""
    named = {f"{name}, {sparse:g}": sae.dictionary for (name, sparse), sae in saes.items()}
    named |= {f"dictionary of P, lam {lam:g}": dictionary for lam, dictionary in fitted.items()}
    values = same_supports(named, rows, k)
    order = sorted(values, key=lambda name: values[name].mean())
    lines = [
        f"## Dictionaries alone: {k} atoms a row, chosen and weighed alike for all", "",
        f"`jaxdict.best_subset` on {len(rows):,} fresh rows: pursuit and exchanges, an upper bound of what {k} atoms allow; seed 0.", "",
        "| dictionary | squared error a row | more than the first |", "| --- | --- | --- |",
    ]  # fmt: skip
    kept = {}
    for name in order:
        mean, error = mean_and_error(values[name], documents)
        more = mean_and_error(values[name] - values[order[0]], documents)
        kept[name] = {"error": [mean, error], "more": more}
        lines.append(f"| {name} | {mean:.4f} +- {error:.4f} | {more[0]:.4f} +- {more[1]:.4f} |")
    return [*lines, ""], {"k": k, "rows": len(rows), "dictionaries": kept}


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("acts", type=Path)
    parser.add_argument("--documents", type=Path)
    parser.add_argument("--atoms", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--architectures", nargs="*", default=list(ARCHITECTURES), choices=ARCHITECTURES)
    parser.add_argument("--dictionaries", nargs="*", type=float, default=[0.06], help="lam of each dictionary of P")
    parser.add_argument("--epochs", type=float, default=2, help="of the dictionaries' stochastic stage")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--l0", type=float, help="the L0 of the comparison; by default the middle of the common range")
    parser.add_argument("--judged", type=int, default=4096, help="fresh rows at most")
    parser.add_argument("--folder", type=Path, default=Path("study"))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    given = parser.parse_args(argv)
    given.folder.mkdir(parents=True, exist_ok=True)
    X, fresh, documents = prepared(given)
    for name in given.architectures:
        train_all(name, X, given)
    fitted = dictionaries(X, given)
    loaded = {
        name: [
            jd.sae.load(given.folder / f"{name}-{value:g}-{seed}")
            for value in sparsities(name)
            for seed in range(SEEDS)
        ]
        for name in given.architectures
    }
    few = np.linspace(0, len(fresh) - 1, min(given.judged, len(fresh))).astype(int)
    found = jd.arbitrate(loaded, X, held_out=fresh[few], groups=documents[few], l0=given.l0, n_rows=len(few))
    found.to_html(given.folder / "arbitration.html")
    found.to_json(given.folder / "arbitration.json")
    first = {
        (name, value): saes[SEEDS * at] for name, saes in loaded.items() for at, value in enumerate(sparsities(name))
    }
    fewer = few[:: max(len(few) // 2048, 1)]
    k = round(found.document["match"]["l0"] or COUNTS[1])  # none is common to all: the middle of what was asked for
    choices, told = choice_table(first, fitted, fresh[fewer], documents[fewer], k)
    kept = {"arbitration": found.document, "choices": told}
    given.out.with_suffix(".json").write_text(json.dumps(kept) + "\n")
    lines = [
        "# Real activations, every architecture", "",
        f"`python benchmarks/study_real.py`: {len(X):,} rows of {X.shape[1]} dimensions to train on, {len(few):,} fresh ones of "
        f"{len(np.unique(documents[few])):,} other documents to judge; {given.atoms:,} latents, {given.steps:,} steps of {given.batch} "
        f"rows, {len(COUNTS)} sparsities, {SEEDS} seeds. Rows centred, mean square one; error is squared error a row.", "",
        " ".join(found.document["verdict"][:2]), "",
        "The page, with every pair and what it does not say: `arbitration.html`.", "", "```", found.table(), "```", "",
        *choices,
    ]  # fmt: skip
    given.out.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
