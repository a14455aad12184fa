"""Where trained SAEs of every architecture lose their squared error, one audit a folder.

`python benchmarks/architectures.py SAES ACTS.npz`: SAES is a folder of SAE folders, ACTS.npz holds `acts` (rows, d_in) and, where rows
depend on one another, `doc` (rows,). Each part is a share of the SAE's own squared error with its standard error over documents; in bold
what is above three of them.
"""

import argparse
import time
from pathlib import Path

import jax
import numpy as np

import jaxdict as jd

PARTS = ("values", "supports", "decoder", "dictionary", "atoms")


def cell(part: dict, own: float) -> str:
    """A part in percent of the error."""
    if part["mean"] is None:
        return "not measured"
    text = f"{100 * part['mean'] / own:.1f} ± {100 * part['standard_error'] / own:.1f}"
    return f"**{text}**" if part["shown"] else text


def line(name: str, document: dict, error: float, seconds: float) -> str:
    """The table's line of one SAE."""
    split, measures = document["split"], {measure["name"]: measure["value"] for measure in document["measures"]}
    own, parts = split["own"], {part["name"]: part for part in split["parts"]}
    cells = [cell(parts[part], own) for part in PARTS]
    lam = document["lam"]["source"] if document["lam"]["value"] is not None else "none"
    before = f"{name} | {document['sae']['architecture']} | {measures['l0']:.1f} | {error:.3f}"
    return f"| {before} | {' | '.join(cells)} | {100 * split['rest']['share']:.1f} | {lam} | {seconds:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("saes", type=Path)
    parser.add_argument("acts", type=Path)
    parser.add_argument("--rows", type=int, default=2048, help="rows that the error is split on")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    given = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    with np.load(given.acts) as stored:
        X, documents = stored["acts"].astype(np.float32), stored.get("doc")
    about = f"{len(X):,} rows" + ("" if documents is None else f" of {len(np.unique(documents)):,} documents")
    lines = [
        f"# Where SAEs lose their error\n\n`python benchmarks/architectures.py SAES {given.acts.name}`: {about} (which the SAEs were "
        f"trained on), d = {X.shape[1]}, the error split on {given.rows:,} of them; percent of each SAE's own squared error, standard "
        "errors over documents, bold where above three of them. Decoder, dictionary and atoms on rows that the change was not fitted "
        "to. Error: own squared error over the rows' variance.\n",
        "| SAE | architecture | L0 | error | values | supports | decoder | dictionary | an eighth more atoms | rest | lam | s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    verdicts = ["\n## What the audit says first\n"]
    print("\n".join(lines), flush=True)
    for folder in sorted(path for path in given.saes.iterdir() if path.is_dir()):
        begin = time.perf_counter()
        found = jd.audit(jd.sae.load(folder), X, groups=documents, exact_samples=given.rows)
        error = 1 - (found.measures["explained_variance"] or 0.0)
        lines.append(line(folder.name, found.document, error, time.perf_counter() - begin))
        verdicts.append(f"- {folder.name}: {found.document['split']['sentence']}")
        print(lines[-1], verdicts[-1], sep="\n", flush=True)
    given.out.write_text("\n".join(lines + verdicts) + "\n")


if __name__ == "__main__":
    main()
