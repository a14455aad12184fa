"""Does an audit put planted parents and children first? `python benchmarks/planted_pairs.py [seeds]` writes planted_pairs.md.

Truth: 5 hierarchies (the child fires only with its parent), 4 correlated pairs, 6 independent features of which three pairs point
alike (cosine .7). A relu SAE with an L1 penalty is trained on it by optax; a pair of its features counts as planted when both lie in
the plane of one hierarchy's two atoms. Average precision over all pairs of features, ranked by the audit's measured cost (T16, exact
codes), by decoder cosine, and by co-activation (Jaccard).
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.metrics import average_precision_score

import jaxdict as jd
from jaxdict.sae.models import SAE, Metadata

N, D, K, L1 = 4000, 32, 24, 0.2
HIERARCHIES = [(2 * k, 2 * k + 1) for k in range(5)]
CORRELATED = [(10 + 2 * k, 11 + 2 * k) for k in range(4)]
ALIKE = [(18, 19), (20, 21), (22, 23)]


def planted(seed: int):
    """Rows and the true atoms."""
    rng = np.random.default_rng(seed)
    atoms = np.linalg.qr(rng.normal(size=(D, D)))[0][:K]
    for a, b in ALIKE:
        atoms[b] = 0.7 * atoms[a] + np.sqrt(1 - 0.49) * atoms[b]
    on = rng.random((N, K)) < 0.08
    for parent, child in HIERARCHIES:
        on[:, parent] = rng.random(N) < 0.2
        on[:, child] = on[:, parent] & (rng.random(N) < 0.35)
    for a, b in CORRELATED:
        together = rng.random(N) < 0.08
        on[:, a] |= together
        on[:, b] |= together
    codes = on * rng.uniform(0.8, 1.6, on.shape)
    return (codes @ atoms + 0.02 * rng.normal(size=(N, D))).astype(np.float32), atoms


def trained(X, steps: int, key) -> SAE:
    """A relu SAE with an L1 penalty, full batch."""
    W = jax.random.normal(key, (K, D))
    W = (W / jnp.linalg.norm(W, axis=1, keepdims=True)).astype(jnp.float32)
    weights = (W.T, jnp.zeros(K, jnp.float32), W, jnp.mean(jnp.asarray(X), axis=0))

    def loss(weights):
        sae = SAE(*weights)
        f = sae.encode(X)
        r = X - sae.decode(f)
        return jnp.mean(jnp.sum(r * r, axis=1)) + L1 * jnp.mean(f @ sae.norms)

    optimiser = optax.adam(3e-3)

    def step(carry, _):
        weights, state = carry
        updates, state = optimiser.update(jax.grad(loss)(weights), state)
        return (optax.apply_updates(weights, updates), state), None

    start = (weights, optimiser.init(weights))
    (weights, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, None, steps))(start)
    return SAE(*weights, metadata=Metadata(lam=L1 / 2))


def precisions(seed: int, steps: int) -> dict[str, float]:
    """Average precision of each ranking, and what the SAE explains."""
    X, atoms = planted(seed)
    sae = trained(X, steps, jax.random.key(seed))
    units = np.asarray(sae.dictionary.atoms)
    cosines = units @ atoms.T
    family = np.full(K, -1)
    for k, (parent, child) in enumerate(HIERARCHIES):
        family[np.hypot(cosines[:, parent], cosines[:, child]) > 0.9] = k
    truth = (family[:, None] == family[None, :]) & (family[:, None] >= 0)
    found = jd.audit(sae, X, exact_samples=2000, descent_steps=0)
    cost = np.zeros((K, K))
    for pair in found.document["pairs"]:
        cost[pair["parent"], pair["child"]] = pair["cost"]
    on = (np.asarray(sae.encode(X)) > 0).astype(float)
    both, counts = on.T @ on, on.sum(axis=0)
    jaccard = both / np.maximum(counts[:, None] + counts[None, :] - both, 1)
    upper = np.triu_indices(K, 1)
    rankings = {"cost": np.maximum(cost, cost.T), "cosine": np.abs(units @ units.T), "co-activation": jaccard}
    scores = {name: float(average_precision_score(truth[upper], score[upper])) for name, score in rankings.items()}
    return scores | {"planted": int(truth[upper].sum()), "explained": found.measures["explained_variance"]}


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    lines = [
        "# Planted pairs in an audit",
        "",
        "`python benchmarks/planted_pairs.py`: " + " ".join((__doc__ or "").split("\n\n", 1)[1].split()),
        "",
    ]
    lines += [
        "| steps of training | cost (T16) | cosine | co-activation | explained variance |",
        "|---|---|---|---|---|",
    ]
    for steps in (500, 2000):
        rows = [precisions(seed, steps) for seed in range(seeds)]
        cells = [
            f"{np.mean([row[name] for row in rows]):.2f} ± {np.std([row[name] for row in rows]):.2f}"
            for name in ("cost", "cosine", "co-activation", "explained")
        ]
        lines.append(f"| {steps} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    Path(__file__).with_suffix(".md").write_text("\n".join([*lines, "", f"Mean and spread over {seeds} seeds."]) + "\n")


if __name__ == "__main__":
    main()
