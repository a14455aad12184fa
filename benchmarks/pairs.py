"""T6 for all pairs at SAE scale: seconds for 4,096 features on 100,000 sparse codes, and exactness against brute force at 256.

python benchmarks/pairs.py
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxdict as jd

jax.config.update("jax_enable_x64", True)


def sparse_case(rng, n, k, slots, mean_active):
    """Codes with Zipf frequencies, and features that fire only with another: what an SAE's codes look like."""
    frequency = 1 / np.arange(1, k + 1) ** 0.7
    indices = np.empty((n, slots), np.int32)
    for start in range(0, n, 10_000):
        rows = min(10_000, n - start)
        noise = rng.gumbel(size=(rows, k)).astype(np.float32) + np.log(frequency).astype(np.float32)
        indices[start : start + rows] = np.argpartition(-noise, slots, axis=1)[:, :slots]
    values = rng.exponential(size=(n, slots)).astype(np.float32)
    values[rng.uniform(size=values.shape) > mean_active / slots] = 0
    return jd.SparseCodes(jnp.asarray(indices), jnp.asarray(values))


def brute_force(Z):
    means, k = Z.mean(0), Z.shape[1]
    upper, lower = np.full((k, k), np.nan), np.full((k, k), np.nan)
    for i in range(k):
        off = Z[Z[:, i] == 0] / means
        lower[i], upper[i] = 1 - off.max(0), 1 - off.min(0)
    np.fill_diagonal(lower, np.nan)
    np.fill_diagonal(upper, np.nan)
    return lower, upper


def main():
    rng = np.random.default_rng(0)
    codes = sparse_case(rng, 100_000, 4096, 60, 28)
    D = rng.normal(size=(4096, 64)).astype(np.float32)
    dictionary = jd.Dictionary(D / np.linalg.norm(D, axis=1, keepdims=True))
    mean_active = float(jnp.mean(jnp.sum(codes.values > 0, axis=1)))
    for call in ("first call, compiling", "second call"):
        start = time.perf_counter()
        found = jax.block_until_ready(jd.conditions.pairs(dictionary, codes))
        print(f"K = 4096, N = 100,000, L0 = {mean_active:.0f}: {time.perf_counter() - start:.1f} s ({call})")
    small = sparse_case(rng, 5_000, 256, 40, 20)
    small = jd.SparseCodes(small.indices, small.values.astype(jnp.float64))
    D = jd.Dictionary(dictionary.atoms[:256].astype(np.float64))
    found = jd.conditions.pairs(D, small)
    lower, upper = brute_force(np.asarray(jd.dense_codes(small, 256), np.float64))
    worst = max(np.nanmax(np.abs(np.asarray(found.lower) - lower)), np.nanmax(np.abs(np.asarray(found.upper) - upper)))
    print(f"K = 256 against brute force: largest difference {worst:.1e} (float64)")


if __name__ == "__main__":
    main()
