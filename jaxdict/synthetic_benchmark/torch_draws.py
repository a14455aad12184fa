"""Normal numbers as torch draws them on a CPU from a seed: saved models do not hold their sizes, only the seed of them."""

import numpy as np
from jaxtyping import Float

# Shorter draws go pair by pair in float64, longer ones sixteen at a time in float32.
BLOCK = 16


def torch_normals(n: int, seed: int) -> Float[np.ndarray, " n"]:
    """`torch.randn(n, generator=torch.Generator().manual_seed(seed))`, float32, to rounding.

    torch's generator is the Mersenne twister that numpy has. An array of sixteen or more is filled with uniform numbers, 24 bits of
    a draw each; of every sixteen the first eight give radii and the others angles (Box and Muller), and a remainder is drawn anew
    as the last sixteen. A shorter array takes 53 bits of two draws for each number of a pair.

    >>> [f"{z:.4f}" for z in (*torch_normals(16, 42)[:3], *torch_normals(3, 42))]
    ['1.9269', '1.4873', '0.9007', '0.3367', '0.1288', '0.2345']
    """
    engine = np.random.RandomState(seed % 2**32)
    if n < BLOCK:
        draws = _bits(engine, 2 * 2 * -(-n // 2)).astype(np.uint64).reshape(-1, 2, 2)
        whole = (draws[..., 0] << np.uint64(32) | draws[..., 1]) & np.uint64(2**53 - 1)
        angle, radius = (whole / 2.0**53).T
        size = np.sqrt(-2 * np.log1p(-radius))
        pairs = np.stack([size * np.cos(2 * np.pi * angle), size * np.sin(2 * np.pi * angle)], axis=1)
        return pairs.ravel()[:n].astype(np.float32)
    values = _uniform(engine, n)
    whole = n - n % BLOCK
    values[:whole] = _box_muller(values[:whole])
    if n % BLOCK:
        values[-BLOCK:] = _box_muller(_uniform(engine, BLOCK))
    return values


def _bits(engine, n: int) -> np.ndarray:
    return engine.randint(0, 2**32, n, dtype=np.uint32)


def _uniform(engine, n: int) -> np.ndarray:
    return (_bits(engine, n) & np.uint32(2**24 - 1)).astype(np.float32) / np.float32(2**24)


def _box_muller(uniform: np.ndarray) -> np.ndarray:
    blocks = uniform.reshape(-1, 2, BLOCK // 2)
    radius, angle = np.sqrt(-2 * np.log(1 - blocks[:, 0])), np.float32(2 * np.pi) * blocks[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()
