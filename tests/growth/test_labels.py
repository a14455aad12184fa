"""Labels of atoms are those of the rows on which they are strongest; the page holds them, escaped."""

import jax
import numpy as np
import pytest

import jaxdict as jd
from jaxdict.growth import label_atoms, write_tree

pytestmark = pytest.mark.slow

PLANTED = jd.synthetic.rays(jax.random.key(0), 80, 3, 4)
PROBLEM = jd.Problem(lam=0.1, offset=False)
NAMES = np.array(["<a>", "b&c", "d"])[np.asarray(PLANTED.codes).argmax(1)]


@pytest.fixture(scope="module")
def grown():
    return jd.grow(PROBLEM, PLANTED.X, (1, 2, 4), key=jax.random.key(1), held_out=0)


def test_labels_at_birth_and_at_the_end(grown):
    end = label_atoms(PROBLEM, grown, PLANTED.X, NAMES, top=1, when="end")
    assert sorted(end[atom] for atom in grown.tree.names[-1]) == [["<a>"], ["b&c"], ["d"]]
    birth = label_atoms(PROBLEM, grown, PLANTED.X, NAMES, top=2)
    assert len(birth[0]) == 2
    first = grown.steps[0]
    codes = np.asarray(jd.encode(PROBLEM, first.dictionary, PLANTED.X, tol=1e-12).codes)[:, 0]
    assert birth[0][0] == NAMES[np.argmax(codes)]


def test_the_page_holds_every_atom_and_every_width(grown, tmp_path):
    page = write_tree(
        grown, tmp_path / "tree.html", label_atoms(PROBLEM, grown, PLANTED.X, NAMES, when="end")
    ).read_text()
    assert "&lt;a&gt;" in page
    assert "b&amp;c" in page
    assert "<a>" not in page
    assert page.count("<tr>") == 1 + len(grown.steps)
    assert page.count("</details>") == page.count("<details")


def test_what_does_not_fit_is_refused(grown):
    with pytest.raises(ValueError, match="give one label a row"):
        label_atoms(PROBLEM, grown, PLANTED.X, NAMES[:3])
    with pytest.raises(ValueError, match="when='now'"):
        label_atoms(PROBLEM, grown, PLANTED.X, NAMES, when="now")
