"""Are T17's defects unbiased, and do T18's intervals cover? Draws of fresh rows beside all rows of a large file.

    python benchmarks/population.py ACTS.npy [--atoms 64] [--lam 0.15] [--rows 1000] [--draws 200] [--out FILE.md]

A dictionary is fitted to the first 2,000 rows of a random order, another one starts there and is fitted to 4,000 more. The
population is all other rows of the file, their defects taken from all of them; each draw is `--rows` of those, drawn with replacement, so
that its rows are independent.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxdict as jd

OWN, MORE = 2000, 4000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("acts", type=Path)
    parser.add_argument("--atoms", type=int, default=64)
    parser.add_argument("--lam", type=float, default=0.15)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    given = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    X = np.load(given.acts, mmap_mode="r")
    X = X[np.random.default_rng(0).permutation(len(X))].astype(float)
    centre = X[:OWN].mean(0)
    X = (X - centre) / np.sqrt(((X[:OWN] - centre) ** 2).sum(1).mean())
    problem, rest = jd.Problem(lam=given.lam), X[OWN + MORE :]
    first = jd.fit(problem, X[:OWN], given.atoms, key=jax.random.key(0), tol=1e-6)
    second = jd.fit(problem, X[: OWN + MORE], start=first.dictionary, tol=1e-4)
    whole = jd.population.defects(problem, first.dictionary, rest)
    gain = float(jd.population.compare(problem, first.dictionary, second.dictionary, rest).gain)
    print(whole.message(), gain, flush=True)

    @jax.jit
    def of_draw(rows):
        found = jd.population.defects(problem, first.dictionary, rows)
        return found.squared, found.naive**2, jd.population.compare(problem, first.dictionary, second.dictionary, rows)

    draw, found = np.random.default_rng(1), []
    for _ in range(given.draws):
        found.append(jax.device_get(of_draw(jnp.asarray(rest[draw.integers(0, len(rest), given.rows)]))))
    squared, naive = (np.stack([one[part] for one in found]) for part in (0, 1))
    gains, errors = (np.array([getattr(one[2], name) for one in found]) for name in ("gain", "standard_error"))
    z = (squared.mean(0) - np.asarray(whole.squared)) / (squared.std(0, ddof=1) / np.sqrt(given.draws))
    known = np.isfinite(z)
    # All atoms at once: the mean of their squared defects, drawn as often.
    means, right = squared[:, known].mean(1), float(np.asarray(whole.squared)[known].mean())
    together = (means.mean() - right) / (means.std(ddof=1) / np.sqrt(given.draws))
    covered = np.abs(gains - gain) < 1.96 * errors
    hundreds = [int(part.sum()) for part in np.split(covered, given.draws // 100)] if given.draws % 100 == 0 else []
    lines = [
        "# What fresh rows show of a population",
        "",
        f"`python benchmarks/population.py`, {time.strftime('%Y-%m-%d')}: {len(rest):,} rows as the population, {given.draws} draws of "
        f"{given.rows:,} rows; K = {given.atoms}, lam = {given.lam:g}; the dictionary was fitted to {OWN:,} other rows.",
        "",
        f"- On its own rows the worst stationarity is {float(first.certificate.stationarity.worst):.1g}; {whole.message()}.",
        f"- **T17**: the mean squared defect of an atom is {right:.4f}; over the draws {means.mean():.4f}, {together:+.2f} standard errors "
        f"off ({np.mean(np.abs(z[known]) < 2):.0%} of {known.sum()} atoms are within two, 95% expected). Naively it is "
        f"{naive[:, known].mean():.4f}.",
        f"- **T18**: the second dictionary gains {gain:.5f}; 95% intervals cover it in {covered.sum()} of {given.draws} draws"
        + (f" ({' and '.join(map(str, hundreds))} a hundred)." if hundreds else "."),
    ]
    given.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
