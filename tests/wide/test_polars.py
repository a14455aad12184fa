"""The polar of the size-penalised gauge (T15): brute force on dense grids, closed forms, and every option."""

import jax.numpy as jnp
import numpy as np
import pytest
import size_penalised

from jaxdict import wide
from jaxdict.wide import cells


def test_polar_height_solves_its_equation_and_bounds_every_ratio():
    rng = np.random.default_rng(3)
    y, tau = rng.normal(size=(30, 7)), 0.7
    k = np.asarray(wide.polar_height(jnp.array(y), tau))
    np.testing.assert_allclose(np.linalg.norm(np.maximum(y - k, 0), axis=0), k * tau, rtol=1e-10)
    for _ in range(50):
        z = np.abs(rng.normal(size=y.shape)) * (rng.random(y.shape) < 0.3)
        ratios = np.sum(y * z, axis=0) / np.maximum(z.sum(0) + tau * np.linalg.norm(z, axis=0), 1e-12)
        assert np.all(ratios <= k * (1 + 1e-12))
    assert float(wide.polar_height(-jnp.ones((3, 1)), tau)[0]) == 0


@pytest.mark.parametrize("tau", [0.0, 0.4, 30.0])
def test_heights_from_below_and_above_meet_at_the_root(tau):
    y = np.random.default_rng(0).normal(size=(20, 50)) * np.geomspace(1e-3, 1e3, 50)
    below, above = cells.heights(y, tau)
    np.testing.assert_allclose(below, size_penalised.heights(y, tau), rtol=1e-12)
    assert np.all(above >= below)
    np.testing.assert_allclose(above, below, rtol=1e-12)


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("tau", [0.0, 0.3, 3.0])
def test_no_point_of_a_dense_grid_is_above_the_bound_and_the_value_is_the_highest(d, tau):
    rng = np.random.default_rng(10 * d)
    points, spacing = size_penalised.sphere(d)
    for _ in range(5):
        R = rng.normal(size=(12, d))
        found = wide.polar(R, tau)
        grid = np.max(size_penalised.heights(R @ points.T, tau))
        assert grid <= float(found.value) * (1 + 1e-12) <= float(found.upper) * (1 + 1e-12)
        assert float(found.value) * np.cos(spacing) <= grid * (1 + 1e-9)  # convex and homogeneous: no peak is sharper
        assert float(found.upper) <= float(found.value) * (1 + 1.1e-5)
        d_found = np.asarray(found.direction)
        np.testing.assert_allclose(np.linalg.norm(d_found), 1, rtol=1e-12)
        np.testing.assert_allclose(size_penalised.heights((R @ d_found)[:, None], tau)[0], found.value, rtol=1e-10)


def test_more_dimensions_close_while_cells_last_and_stay_certified_when_they_do_not():
    R = np.random.default_rng(1).normal(size=(10, 4))
    closed = wide.polar(R, 0.5, tol=1e-3)
    assert float(closed.upper) <= float(closed.value) * (1 + 1.1e-3)
    short = wide.polar(R, 0.5, tol=1e-3, max_cells=20)
    assert short.cells <= 20 < closed.cells
    assert float(closed.value) <= float(short.upper)
    assert float(short.upper) > float(closed.upper) * 1.001
    none = wide.polar(R, 0.5, max_cells=0)
    assert none.cells == 0
    rows = float(wide.polar_height(jnp.linalg.norm(jnp.array(R), axis=1)[:, None], 0.5)[0])
    np.testing.assert_allclose(none.upper, min(rows, np.linalg.norm(R, 2) / 1.5), rtol=1e-9)


def test_rows_of_few_dimensions_are_searched_in_these():
    rng = np.random.default_rng(2)
    basis = np.linalg.qr(rng.normal(size=(30, 2)))[0].T
    flat = rng.normal(size=(9, 2))
    wide_rows, plane = wide.polar(flat @ basis, 0.6), wide.polar(flat, 0.6)
    np.testing.assert_allclose(wide_rows.value, plane.value, rtol=1e-10)
    assert float(wide_rows.upper) <= float(wide_rows.value) * (1 + 1.1e-5)
    np.testing.assert_allclose(wide_rows.direction, np.asarray(plane.direction) @ basis, atol=1e-4)
    nothing = wide.polar(np.zeros((3, 2)), 0.6)
    assert (float(nothing.value), nothing.starts, nothing.cells) == (0, 0, 0)


def test_a_level_that_all_stay_below_needs_few_cells():
    R = np.random.default_rng(4).normal(size=(12, 3))
    found = wide.polar(R, 0.5)
    above = wide.polar(R, 0.5, level=1.05 * float(found.value))
    assert above.cells < found.cells / 2
    assert float(found.value) <= float(above.upper) <= 1.05 * float(found.value) * (1 + 1e-9)
    closer = wide.polar(R, 0.5, tol=1e-6)
    assert closer.cells > found.cells
    assert float(closer.upper) <= float(closer.value) * (1 + 1.1e-6)


def test_the_branches_find_what_local_searches_miss(monkeypatch):
    """From the shorter of two rows the search stays there; the cells lead to the longer one."""
    R = np.array([[4.0, 0.0], [5 * np.cos(1.8), 5 * np.sin(1.8)]])
    monkeypatch.setattr(cells, "_starts", lambda S, given: S[:1] / np.linalg.norm(S[0]))
    np.testing.assert_allclose(wide.polar(R, 0.2, max_cells=0).value, 4 / 1.2, rtol=1e-9)
    np.testing.assert_allclose(wide.polar(R, 0.2).value, 5 / 1.2, rtol=1e-9)


def test_bounds_scale_with_the_data_and_hold_in_float32():
    R = np.random.default_rng(5).normal(size=(8, 2))
    plain = wide.polar(R, 0.5)
    for factor in (1e-30, 1e20):
        scaled = wide.polar(R * factor, 0.5)
        np.testing.assert_allclose(scaled.value, float(plain.value) * factor, rtol=1e-12)
        np.testing.assert_allclose(scaled.upper, float(plain.upper) * factor, rtol=1e-12)
    single = wide.polar(R.astype(np.float32), 0.5)
    assert single.value.dtype == single.upper.dtype == single.direction.dtype == np.float32
    assert float(single.upper) >= float(plain.value) * (1 - 1e-6)


def test_what_is_refused():
    R = np.ones((3, 2))
    for options in ({"tau": -1.0}, {"tau": 1.0, "level": -1.0}, {"tau": 1.0, "max_cells": -1}):
        with pytest.raises(ValueError, match="give none below zero"):
            wide.polar(R, **options)
    with pytest.raises(ValueError, match="give 1e-7 or more"):
        wide.polar(R, 1.0, tol=1e-9)
    with pytest.raises(ValueError, match="NaN or infinity"):
        wide.polar(R * np.nan, 1.0)
