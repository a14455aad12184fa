"""Pictures draw what the conditions return, on the axes given, and save without a display."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import jaxdict as jd
from jaxdict import plots, synthetic

KEY = jax.random.key(0)


@pytest.mark.parametrize(("missing", "verdict"), [("nothing", "inside"), ("middle", "inside"), ("edge", "outside")])
def test_the_hull_picture_tells_the_pair_condition(missing, verdict):
    planted = synthetic.illustrative(KEY, missing=missing)
    axes = plots.hull(planted.dictionary, planted.codes)
    titles = [panel.get_title(loc="left") for panel in axes]
    assert verdict in titles[0]
    assert "inside" in titles[1]


@pytest.mark.slow
def test_pictures_draw_on_the_axes_given_and_save(tmp_path):
    planted = synthetic.dense_direction(KEY, 60, 3)
    problem, point = jd.Problem(lam=0.1), (planted.dictionary, planted.codes)
    figure = Figure()
    axes = figure.subplots(2, 4)
    history = jd.solvers.History(jnp.array([2.0, 1.0, jnp.nan]), jnp.array([1.0, 0.1, jnp.nan]))
    plots.hull(*point, (0, 2), axes=axes[0, :2])
    plots.residual_directions(problem, *point, planted.X, axes=axes[0, 2:])
    plots.convergence(history, bound=0.5, tol=1e-3, axes=axes[1, :2])
    plots.antipodal_pairs(*point, ax=axes[1, 2])
    defect = jd.conditions.barycentre(problem, *point, planted.X)
    assert plots.barycentre_map(defect, ax=axes[1, 3]) is axes[1, 3]
    assert all(panel.get_title(loc="left") for panel in axes.ravel())
    assert "1 of them dense" in axes[1, 2].get_title(loc="left")
    np.testing.assert_array_equal(axes[1, 3].images[0].get_array(), defect)
    figure.savefig(tmp_path / "all.png")


def test_without_an_offset_there_is_no_segment():
    with pytest.raises(ValueError, match="offset"):
        plots.hull(jd.Dictionary(jnp.eye(2)), jnp.eye(2), offset=False)


@pytest.mark.slow
def test_growth_is_drawn_with_its_bounds_and_its_splits(tmp_path):
    X = np.asarray(synthetic.rays(KEY, 80, 3, 4).X)
    grown = jd.grow(jd.Problem(lam=0.1, offset=False), X, (1, 2, 4), key=jax.random.key(1), held_out=0.3)
    labels = [[f"atom {k}"] for k in range(len(grown.tree.born))]
    left, right = plots.growth_figure(grown, labels)
    assert f"taken: {grown.dictionary.atoms.shape[0]} atoms" in left.get_title(loc="left")
    shown = [text.get_text() for text in left.get_legend().get_texts()]
    assert sum("bound of these" in text for text in shown) == 2
    assert {text.get_text() for text in right.texts} == {label[0] for label in labels}
    assert [tick.get_text() for tick in right.get_xticklabels()] == [str(width) for width in grown.widths]
    left.figure.savefig(tmp_path / "growth.png")
