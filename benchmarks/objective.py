"""Non-negative lasso codes for a fixed dictionary, as a benchopt problem: `benchopt run benchmarks` (extra `jaxdict[bench]`)."""
# benchopt reads lists and dicts off the class, and sets its parameters as attributes.
# ruff: noqa: RUF012
# pyright: reportAttributeAccessIssue=false, reportAssignmentType=false

import numpy as np
from benchopt import BaseObjective


class Objective(BaseObjective):
    """Minimise `mean_n 1/2 ||x_n - z_n D||^2 + lam sum_k z_nk` over codes Z >= 0, with the proof of how close that is.

    Evaluated in float64 from the codes alone: `value`; `worst_gap`, the largest duality gap of a sample over its objective;
    `infeasible`, the most negative code; `active`, codes in use a sample.
    """

    name = "Non-negative lasso codes"
    min_benchopt_version = "1.6"
    requirements = ["numpy"]
    parameters = {}
    test_dataset_name = "planted"

    def set_data(self, X, D, lam):
        self.X, self.D, self.lam = np.asarray(X, float), np.asarray(D, float), float(lam)

    def get_objective(self):
        return {"X": self.X, "D": self.D, "lam": self.lam}

    def evaluate_result(self, codes):
        Z = np.asarray(codes, float)
        infeasible = max(0.0, -float(Z.min()))
        Z = np.maximum(Z, 0)
        r = self.X - Z @ self.D
        theta = r / np.maximum(1, (r @ self.D.T).max(1) / self.lam)[:, None]
        primal = 0.5 * (r**2).sum(1) + self.lam * Z.sum(1)
        # The dual value 1/2 ||x||^2 - 1/2 ||x - theta||^2, without its cancellation.
        gap = primal - (theta * (self.X - 0.5 * theta)).sum(1)
        return {
            "value": float(primal.mean()),
            "worst_gap": float(np.max(gap / np.maximum(primal, np.finfo(float).tiny), initial=0)),
            "infeasible": infeasible,
            "active": float((Z > 0).sum(1).mean()),
        }

    def get_one_result(self):
        return {"codes": np.zeros((self.X.shape[0], self.D.shape[0]))}
