"""Sparse sums of random unit atoms plus noise, coded with the same atoms."""
# benchopt reads lists and dicts off the class, and sets its parameters as attributes.
# ruff: noqa: RUF012
# pyright: reportAttributeAccessIssue=false, reportAssignmentType=false

import numpy as np
from benchopt import BaseDataset


class Dataset(BaseDataset):
    name = "planted"
    requirements = ["numpy"]
    parameters = {
        "n_samples": [1000],
        "d, n_atoms": [(256, 2048)],
        "active": [20],
        "noise": [0.4],
        "lam": [0.2],
    }
    test_parameters = {"n_samples": [20], "d, n_atoms": [(16, 40)], "active": [3]}

    def get_data(self):
        rng, n, d, k = np.random.default_rng(0), self.n_samples, self.d, self.n_atoms
        D = rng.normal(size=(k, d))
        D /= np.linalg.norm(D, axis=1, keepdims=True)
        X = self.noise / np.sqrt(d) * rng.normal(size=(n, d))
        for row in X:
            row += rng.uniform(0.5, 1.5, self.active) @ D[rng.choice(k, self.active, replace=False)]
        return {"X": X, "D": D, "lam": self.lam}
