"""T1, T2 and F written out once more in plain numpy float64, sharing nothing with the package."""

import numpy as np


def certificate(X, D, Z, b, lam, offset=True, weights=None, metric=None, signed=False):
    X, D, Z, b = (np.asarray(v, np.float64) for v in (X, D, Z, b))
    N = X.shape[0]
    w = np.ones(N) if weights is None else np.asarray(weights, np.float64) * N / np.sum(weights)
    m = np.ones(X.shape[1]) if metric is None else np.asarray(metric, np.float64)
    R = X - b - Z @ D
    s = (R * m) @ D.T / lam
    sizes, reach = (np.abs(Z), np.abs(s)) if signed else (Z, s)
    codes = 0.0
    for n in range(N):
        if w[n] == 0:
            continue
        for k in range(D.shape[0]):
            codes = max(codes, abs(np.sign(Z[n, k]) - s[n, k]) if Z[n, k] != 0 else max(reach[n, k] - 1, 0.0))
    atoms = 0.0
    for k in range(D.shape[0]):
        zbar = float(np.mean(w * sizes[:, k]))
        if zbar > 0:
            v = (w * Z[:, k]) @ (R * m) / N / (lam * zbar)
            u = D[k] / np.linalg.norm(D[k])
            atoms = max(atoms, float(np.hypot(np.linalg.norm(v - (u @ v) * u), min(u @ v, 0.0))))
    shift = float(np.linalg.norm((w[:, None] * R * m).mean(0)) / lam) if offset else 0.0
    primal = 0.5 * (m * R * R).sum(1) + lam * sizes.sum(1)
    objective = float(np.mean(w * primal))
    theta = R / np.maximum(1, reach.max(1))[:, None]
    Y = X - b
    dual = 0.5 * (m * Y * Y).sum(1) - 0.5 * (m * (Y - theta) ** 2).sum(1)
    return {
        "objective": objective,
        "codes": codes,
        "atoms": atoms,
        "offset": shift,
        "worst": max(codes, atoms, shift),
        "gap": float(np.mean(w * (primal - dual))),
        "gap_max": float(np.max(np.where(w > 0, primal - dual, 0))),
        "ratio": float(np.max(np.where(w > 0, np.linalg.norm(m * R, axis=1), 0)) / lam),
    }
