"""theory.md names the file that computes each statement and the tests that prove it: they must exist, and none be left out."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "jaxdict" / "theory.md").read_text()


def test_every_named_file_exists():
    named = set(re.findall(r"(?:jaxdict|tests)/[\w/]+\.(?:py|md)", TEXT))
    assert len(named) > 15
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_every_named_function_is_defined_in_its_file():
    named = re.findall(r"(jaxdict/[\w/]+\.py) \(((?:`\w+`(?:, )?)+)", TEXT)
    assert len(named) > 10
    for name, functions in named:
        defined = definitions((ROOT / name).read_text())
        assert not set(re.findall(r"`(\w+)`", functions)) - defined, name


def definitions(source: str) -> set[str]:
    """Functions and classes that a file defines, or binds as `name = jax.jit(...)`; methods and fields of records too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call | ast.Lambda):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def test_a_comment_defines_nothing():
    assert definitions("# curvature\ndef near(): 'curvature'\nfar = jit(near)\nnumber = 3") == {"near", "far"}


def test_every_statement_says_what_computes_it():
    statements = re.findall(r"^\*\*([TC]\d+) \(", TEXT, flags=re.MULTILINE)
    assert [f"T{k}" for k in range(1, 24)] == sorted((s for s in statements if s[0] == "T"), key=lambda s: int(s[1:]))
    assert sorted(s for s in statements if s[0] == "C") == ["C1", "C2", "C3", "C4"]
    blocks = re.split(r"^\*\*(?=[TC]\d+ \()", TEXT, flags=re.MULTILINE)[1:]
    for block in blocks:
        assert "> *Computed by*" in block or "> *Stated only" in block, block[:40]
