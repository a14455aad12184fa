"""SAEs of every architecture on real activations: where each loses its error, side by side, on rows that none was trained on.

    python benchmarks/study_real.py ACTS.npy [--documents FILE.npy] [--tokens FILE.npz] [--atoms 1024] [--steps 1500] [--folder study]

ACTS is a .npy file of activations (rows, d). The documents (a row's number each; blocks of 256 rows where none are given) are parted:
nine tenths to train, the rest to judge. Rows are centred and divided by the root mean square norm of those for training. Each architecture
is trained at three sparsities from three seeds, as one program, into FOLDER/ARCHITECTURE-SPARSITY-SEED; what is there is not trained
again. Beside them stand dictionaries of problem P from `jaxdict.fit_stream`, one for each lam asked for, with exact codes. Then
`jaxdict.arbitrate` compares all at one L0. Where the rows' tokens are known (--tokens: token_id, doc and pos by row, vocab, doc_topic)
it is measured, on the same fresh documents and with the weights of the arbitration, what single latents stand for.
"""

import argparse
import json
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import latents
import numpy as np
import scipy.sparse
from streams import mean_and_error

import jaxdict as jd
from jaxdict.sae.trainers.asking import ARCHITECTURES, KINDS

# Sparsities: k, or the lam that gave about as many codes in a short run.
COUNTS = (16, 32, 64)
LAMS = {
    "standard": (0.1, 0.06, 0.035), "gated": (0.14, 0.08, 0.045), "p_anneal": (0.08, 0.045, 0.025), "jumprelu": (0.004, 0.0015, 0.0007),
}  # fmt: skip
# A step of pursuit costs as much as its k: where that is highest there is one seed.
FEWER = {("matching_pursuit", 64): 1}
# Rows for training on which latents' tokens and concepts' latents are chosen; steps by which a lam is halved to an L0.
CHOOSING, HALVINGS = 20_000, 12


class Rows(NamedTuple):
    """Rows for training and fresh ones, float32, which rows of the file these are, and the document of each row of the file."""

    X: np.ndarray
    fresh: np.ndarray
    judging: np.ndarray
    documents: np.ndarray


def prepared(given) -> Rows:
    """Whole documents set aside; all rows less the mean of those for training, over their size."""
    stored = np.load(given.acts, mmap_mode="r")
    documents = np.arange(len(stored)) // 256 if given.documents is None else np.load(given.documents)
    names = np.unique(documents)
    aside = np.random.default_rng(0).permutation(names)[: max(len(names) // 10, 2)]
    judging = np.isin(documents, aside)
    X = np.asarray(stored[~judging], np.float32)
    centre = X.mean(0)
    size = np.sqrt(((X - centre) ** 2).sum(1).mean())
    return Rows((X - centre) / size, (np.asarray(stored[judging], np.float32) - centre) / size, judging, documents)


def sparsities(name: str) -> tuple:
    return COUNTS if KINDS[name].counts else LAMS[name]


def places(name: str, given) -> list:
    """Sparsity, seed and folder of each SAE of an architecture."""
    return [
        (value, seed, given.folder / f"{name}-{value:g}-{seed}")
        for value in sparsities(name)
        for seed in range(min(given.seeds, FEWER.get((name, value), given.seeds)))
    ]


def train_all(name: str, X, given) -> None:
    """All SAEs of an architecture that are not there yet, saved."""
    asked = [place for place in places(name, given) if not place[2].exists()]
    if not asked:
        return
    begin = time.process_time()
    sparse = {"k" if KINDS[name].counts else "lam": [value for value, _, _ in asked]}
    keys = jax.vmap(jax.random.key)(np.array([seed for _, seed, _ in asked]))
    saes = jd.sae.train_batch(
        X, given.atoms, keys=keys, architecture=name, steps=given.steps, batch_size=given.batch,
        dead_steps=max(given.steps // 5, 1), **sparse,
    )  # fmt: skip
    seconds = time.process_time() - begin
    for sae, (_, _, folder) in zip(saes, asked, strict=True):
        jd.sae.save(sae, folder)
    print(
        f"{name}: {len(saes)} SAEs in {seconds:.0f} CPU s, {len(saes) * given.steps * given.batch / seconds:,.0f} samples a CPU second",
        flush=True,
    )
    with (given.folder / "cost.jsonl").open("a") as out:
        out.write(json.dumps({"architecture": name, "saes": len(saes), "cpu": seconds}) + "\n")


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


def choice_table(loaded: dict, fitted: dict, rows, documents, k: int, given) -> tuple[list[str], dict]:
    """Every decoder and dictionary of P with the same number of freely chosen atoms, best first; what more is paired with the first."""
    named = {}
    for name, saes in loaded.items():
        firsts = [(value, sae) for (value, seed, _), sae in zip(places(name, given), saes, strict=True) if seed == 0]
        named |= {f"{name}, {value:g}": sae.dictionary for value, sae in firsts}
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


def exact_codes(dictionary, X, lam: float):
    """Exact codes of P, compressed by atom."""
    codes = jd.encode(jd.Problem(lam=lam), dictionary, X, sparse=True).codes
    at = np.arange(len(X)).repeat(codes.indices.shape[1])
    listed = scipy.sparse.csr_matrix(
        (np.asarray(codes.values).ravel(), (at, np.asarray(codes.indices).ravel())), (len(X), len(dictionary.atoms))
    )
    listed.eliminate_zeros()
    return listed.tocsc()


def lam_at(dictionary, X, l0: float, lam: float) -> float:
    """The lam at which exact codes of the rows have so many entries a row, to a part in 2^12 of a factor of eight either way."""
    low, high = lam / 8, lam * 8
    for _ in range(HALVINGS):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if exact_codes(dictionary, X, middle).nnz > l0 * len(X) else (low, middle)
    return float(np.sqrt(low * high))


def latent_table(document: dict, loaded: dict, fitted: dict, rows: Rows, k: float, given) -> tuple[list[str], dict]:
    """What single latents stand for, name by name, with the weights that the arbitration gave each SAE."""
    words = latents.read_words(given.tokens)
    train = np.flatnonzero(~rows.judging)
    some = np.linspace(0, len(train) - 1, min(CHOOSING, len(train))).astype(int)
    at, X = train[some], rows.X[some]
    parts = [latents.Part(words.of(which), rows.documents[which]) for which in (at, np.flatnonzero(rows.judging))]
    judge, told = latents.Judge(*parts), {}
    entries = {entry["name"]: entry for entry in document["entries"] if entry["reached"]}
    for name, entry in entries.items():
        asked = zip(places(name, given), loaded[name], entry["saes"], strict=True)
        used = [(value, sae, facts["weight"]) for (value, _, _), sae, facts in asked if facts["weight"] > 0]
        found = [judge(latents.sparse_codes(sae, X), latents.sparse_codes(sae, rows.fresh)) for _, sae, _ in used]
        told[name] = latents.told_of(found, [weight for *_, weight in used], [value for value, *_ in used])
    for lam, dictionary in fitted.items():
        there = lam_at(dictionary, X[::10], k, lam)
        found = judge(exact_codes(dictionary, X, there), exact_codes(dictionary, rows.fresh, there))
        told[f"dictionary of P, lam {lam:g}, coded at {there:.3g}"] = latents.told_of([found], [1.0], [0])
    lines = [f"## What single latents stand for, at L0 = {k:g}", "", latents.about(judge), "", *latents.table(told), ""]
    return [*lines, *latents.agreements(told, entries), ""], latents.kept_of(told, judge)


def asked(argv) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("acts", type=Path)
    parser.add_argument("--documents", type=Path)
    parser.add_argument("--tokens", type=Path)
    parser.add_argument("--atoms", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--architectures", nargs="*", default=list(ARCHITECTURES), choices=ARCHITECTURES)
    parser.add_argument("--dictionaries", nargs="*", type=float, default=[0.06], help="lam of each dictionary of P")
    parser.add_argument("--epochs", type=float, default=2, help="of the dictionaries' stochastic stage")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--l0", type=float, help="the L0 of the comparison; by default the middle of the common range")
    parser.add_argument("--judged", type=int, default=4096, help="fresh rows at most")
    parser.add_argument("--folder", type=Path, default=Path("study"))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    return parser.parse_args(argv)


def main(argv=None) -> None:
    given = asked(argv)
    given.folder.mkdir(parents=True, exist_ok=True)
    rows = prepared(given)
    for name in given.architectures:
        train_all(name, rows.X, given)
    fitted = dictionaries(rows.X, given)
    loaded = {name: [jd.sae.load(folder) for _, _, folder in places(name, given)] for name in given.architectures}
    few = np.linspace(0, len(rows.fresh) - 1, min(given.judged, len(rows.fresh))).astype(int)
    fresh, documents = rows.fresh[few], rows.documents[rows.judging][few]
    found = jd.arbitrate(loaded, rows.X, held_out=fresh, groups=documents, l0=given.l0, n_rows=len(few))
    found.to_html(given.folder / "arbitration.html")
    found.to_json(given.folder / "arbitration.json")
    fewer = slice(None, None, max(len(few) // 2048, 1))
    k = round(found.document["match"]["l0"] or COUNTS[1])  # none is common to all: the middle of what was asked for
    choices, told = choice_table(loaded, fitted, fresh[fewer], documents[fewer], k, given)
    kept = {"arbitration": found.document, "choices": told}
    if given.tokens is not None:
        more, kept["latents"] = latent_table(found.document, loaded, fitted, rows, k, given)
        choices += more
    given.out.with_suffix(".json").write_text(json.dumps(kept) + "\n")
    lines = [
        "# Real activations, every architecture", "",
        f"`python benchmarks/study_real.py`: {len(rows.X):,} rows of {rows.X.shape[1]} dimensions to train on, {len(few):,} fresh ones of "
        f"{len(np.unique(documents)):,} other documents to judge; {given.atoms:,} latents, {given.steps:,} steps of {given.batch} "
        f"rows, {len(COUNTS)} sparsities, {given.seeds} seeds. Rows centred, mean square one; error is squared error a row.", "",
        " ".join(found.document["verdict"][:2]), "",
        "The page, with every pair and what it does not say: `arbitration.html`.", "", "```", found.table(), "```", "",
        *choices,
    ]  # fmt: skip
    given.out.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
