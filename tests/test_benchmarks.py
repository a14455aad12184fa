"""The benchopt problem in `benchmarks/`: one tiny round by hand, dataset to objective to solver to verdict."""

import numpy as np
import pytest
from scripts import FOLDER, load

pytest.importorskip("benchopt", reason="benchopt is not installed: pip install 'jaxdict[bench]'")
pytest.importorskip("sklearn")

SOLVERS = {
    "jaxdict": "jaxdict",
    "spams": "spams",
    "scikit_lasso": "sklearn",
    "scikit_lars": "sklearn",
    "skglm": "skglm",
}


def problem(name):
    dataset = load(FOLDER / "datasets" / f"{name}.py").Dataset
    small = {key: values[0] for key, values in (dataset.parameters | dataset.test_parameters).items()}
    if "d, n_atoms" in small:
        small["d"], small["n_atoms"] = small.pop("d, n_atoms")
    objective = load(FOLDER / "objective.py").Objective.get_instance()
    objective.set_data(**dataset.get_instance(**small).get_data())
    return objective


@pytest.fixture(scope="module", params=["patches", "planted"])
def objective(request):
    return problem(request.param)


def solved(objective, name, **parameters):
    """What a solver gives at tolerance 1e-10, in benchopt's order of calls."""
    solver = load(FOLDER / "solvers" / f"{name}.py").Solver.get_instance(**parameters)
    given = objective.get_objective()
    skipped, reason = solver.skip(**given)
    if skipped:
        pytest.skip(reason)
    solver.set_objective(**given)
    solver.pre_run_hook(1e-10)
    solver.run(1e-10)
    return objective.evaluate_result(**solver.get_result())


@pytest.mark.parametrize("method", ["numba", "working_set", "gradient"])
def test_our_solvers_reach_the_optimum(objective, method):
    told = solved(objective, "jaxdict", method=method)
    assert told["worst_gap"] <= 1e-9
    assert told["infeasible"] == 0


# skglm compiles for seconds.
PEERS = ["spams", "scikit_lasso", "scikit_lars", pytest.param("skglm", marks=pytest.mark.slow)]


@pytest.mark.parametrize("name", PEERS)
def test_peers_solve_the_same_problem(objective, name):
    """The peers' scalings are right: their value is within their gap of the optimum."""
    pytest.importorskip(SOLVERS[name], reason=f"{SOLVERS[name]} is not installed: a peer in the benchmark, no more")
    told, best = solved(objective, name), solved(objective, "jaxdict", method="gradient")
    assert told["worst_gap"] <= 1e-6
    assert told["value"] == pytest.approx(best["value"], rel=1e-6)


def test_every_solver_and_dataset_is_tried():
    assert {path.stem for path in (FOLDER / "solvers").glob("*.py")} == set(SOLVERS)
    assert {path.stem for path in (FOLDER / "datasets").glob("*.py")} == {"patches", "planted"}


def test_the_objective_tells_bad_codes(objective):
    zero = objective.evaluate_result(**objective.get_one_result())
    assert zero["value"] == pytest.approx(0.5 * np.mean(np.sum(objective.X**2, axis=1)))
    assert zero["worst_gap"] > 0.1
    negative = objective.evaluate_result(objective.get_one_result()["codes"] - 1)
    assert negative["infeasible"] == 1
