"""A splitting tree as one page that opens from disk: splits unfold, no script, nothing from elsewhere."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from jaxdict.growth.records import Growth
from jaxdict.storage import replace_text

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 60em; margin: 2em auto; padding: 0 1em; }
details, .leaf { margin-left: 1.4em; }
summary { cursor: pointer; }
.leaf { padding-left: 1em; }
.facts { color: #7b8794; font-size: 13px; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { text-align: right; padding: 0 1em 0 0; font-weight: normal; }
th { color: #7b8794; }
"""


def write_tree(
    growth: Growth, path, labels: Sequence[Sequence[str]] | None = None, *, title: str = "Splitting tree"
) -> Path:
    """Write the path's table and the tree as a page; `labels` by atom, as `label_atoms` gives them. Returns the file's path."""
    path = Path(path)
    body = [f"<h1>{escape(title)}</h1>", f"<p>{escape(growth.message())}.</p>", _table(growth)]
    body += ["<p>An atom that splits goes on as one of its parts; below it stand those that took mass from it.</p>"]
    body += [_node(growth, root, labels) for root in growth.tree.roots()]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    replace_text(path, "\n".join([head, *body, "</html>", ""]))
    return path


def _node(growth: Growth, atom: int, labels) -> str:
    tree = growth.tree
    words = escape(", ".join(labels[atom])) if labels is not None else ""
    facts = f"atom {atom}, width {growth.steps[tree.born[atom]].width}"
    if tree.parent[atom] >= 0:
        facts += f", {tree.share[atom]:.0%} of its mass and {tree.rows[atom]:.0%} of its rows from {tree.parent[atom]}"
    if tree.ended[atom] >= 0:
        facts += f", taken away at width {growth.steps[tree.ended[atom]].width}"
    line, below = f'{words} <span class="facts">{facts}</span>', tree.children(atom)
    if not below:
        return f'<div class="leaf">{line}</div>'
    return (
        f"<details open><summary>{line}</summary>{''.join(_node(growth, child, labels) for child in below)}</details>"
    )


def _table(growth: Growth) -> str:
    names = "width", "training rows", "rows kept aside", "gain there", "active a row", "mean depth"
    rows = []
    for place, step in enumerate(growth.steps):
        fresh = f"{step.fresh:.5g} &plusmn; {step.standard_error:.1g}" if step.fresh == step.fresh else ""
        compared = step.comparison
        gain = "" if compared is None else f"{float(compared.gain):.3g} &plusmn; {float(compared.standard_error):.1g}"
        cells = (
            f"{step.width}",
            f"{step.objective:.5g}",
            fresh,
            gain,
            f"{step.l0:.2f}",
            f"{growth.tree.depth(place).mean():.2f}",
        )
        rows.append("".join(f"<td>{cell}</td>" for cell in cells))
    head = "".join(f"<th>{name}</th>" for name in names)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"
