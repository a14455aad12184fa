"""Patches of scikit-learn's sample image: 8 x 8 grey, mean removed; the atoms are other patches of it."""
# benchopt reads lists and dicts off the class, and sets its parameters as attributes.
# ruff: noqa: RUF012
# pyright: reportAttributeAccessIssue=false, reportAssignmentType=false

import numpy as np
from benchopt import BaseDataset
from sklearn.datasets import load_sample_image
from sklearn.feature_extraction.image import extract_patches_2d


class Dataset(BaseDataset):
    name = "patches"
    requirements = ["scikit-learn", "pillow"]
    parameters = {"n_samples": [1000], "n_atoms": [256], "lam": [0.1]}
    test_parameters = {"n_samples": [20], "n_atoms": [32]}

    def get_data(self):
        image, n, k = load_sample_image("china.jpg").mean(2) / 255, self.n_samples, self.n_atoms
        X = extract_patches_2d(image, (8, 8), max_patches=n + k, random_state=0).reshape(n + k, 64)
        X = X - X.mean(1, keepdims=True)
        # A little noise, since patches of flat sky are zero and make no atom.
        X, D = X[:n], X[n:] + 1e-6 * np.random.default_rng(0).normal(size=(k, 64))
        scale = np.sqrt((X**2).sum(1).mean())
        return {"X": X / scale, "D": D / np.linalg.norm(D, axis=1, keepdims=True), "lam": self.lam}
