"""theory.md names the file that computes each statement and the tests that prove it: they must exist, and none be left out."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "jaxdict" / "theory.md").read_text()


def test_every_named_file_exists():
    named = set(re.findall(r"(?:jaxdict|tests)/[\w/]+\.(?:py|md)", TEXT))
    assert len(named) > 15
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_every_named_function_is_in_its_file():
    for name, functions in re.findall(r"(jaxdict/[\w/]+\.py) \(((?:`\w+`(?:, )?)+)", TEXT):
        for function in re.findall(r"`(\w+)`", functions):
            assert re.search(rf"def {function}\b|\b{function}\b", (ROOT / name).read_text()), (name, function)


def test_every_statement_says_what_computes_it():
    statements = re.findall(r"^\*\*([TC]\d+) \(", TEXT, flags=re.MULTILINE)
    assert [f"T{k}" for k in range(1, 24)] == sorted((s for s in statements if s[0] == "T"), key=lambda s: int(s[1:]))
    assert sorted(s for s in statements if s[0] == "C") == ["C1", "C2", "C3", "C4"]
    blocks = re.split(r"^\*\*(?=[TC]\d+ \()", TEXT, flags=re.MULTILINE)[1:]
    for block in blocks:
        assert "> *Computed by*" in block or "> *Stated only" in block, block[:40]
