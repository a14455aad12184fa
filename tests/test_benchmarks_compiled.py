"""`benchmarks/compiled.py`: its own counts, and the smallest programs compiled for a TPU, where libtpu is installed."""

import json

import jax
import jax.numpy as jnp
import pytest
from scripts import FOLDER, load


@pytest.fixture(scope="module")
def compiled():
    return load(FOLDER / "compiled.py")


def test_products_are_counted_by_the_steps_of_their_loops(compiled):
    def five_times(A, B):
        return jax.lax.fori_loop(0, 5, lambda _, A: A @ (B @ B.T), A)

    def dearest(A, B):
        return jax.lax.cond(A[0, 0] > 0, lambda: A @ B @ B.T, lambda: A)

    A, B = jnp.ones((3, 4)), jnp.ones((4, 2))
    one, other = 2 * 4 * 2 * 4, 2 * 3 * 4 * 4
    assert compiled.products(jax.make_jaxpr(five_times)(A, B).jaxpr) == 5 * (one + other)
    assert compiled.products(jax.make_jaxpr(jax.jit(dearest))(A, B).jaxpr) == 2 * 2 * 3 * 4 * 2


def test_collectives_are_told_by_kind_and_size(compiled):
    text = """
    %a = f32[7,5]{1,0} all-reduce(%x), replica_groups={}
    %b = (f32[3]{0}, s32[2,40]{1,0}) all-reduce-start(%x, %y)
    %c = pred[] all-gather(%z)
    """
    assert compiled.exchanged(text) == {"all-reduce": (2, 80), "all-gather": (1, 1)}


def test_the_table_has_all_rows_and_their_reasons(compiled, tmp_path):
    calls = ["--platform", "cpu", "--part", "all", "--out", str(tmp_path / "table.md")]
    compiled.main([*calls, "--only", "^residual$"])
    compiled.main([*calls, "--only", "^recovery.label_numbers$"])
    told, rows = (tmp_path / "table.md").read_text(), json.loads((tmp_path / "table.json").read_text())
    assert rows["cpu/all/1/residual"]["flops"] > 0
    assert rows["cpu/all/1/residual"]["products"] == 2 * 16 * 4 * 3
    assert "| residual | 1 | " in told
    assert "| recovery.label_numbers | 1 | labels of any kind" in told


def test_what_was_measured_is_kept_and_so_are_the_notes(compiled, tmp_path, capsys):
    notes = "\n## Notes\n\nBy hand.\n"
    (tmp_path / "table.md").write_text("gone" + notes)
    call = ["--platform", "cpu", "--part", "all", "--only", "^residual$", "--out", str(tmp_path / "table.md")]
    printed = []
    for more in ([], [], ["--again"]):
        compiled.main([*call, *more])
        printed.append(capsys.readouterr().out.count("| residual |"))
    assert printed == [1, 0, 1]
    told = (tmp_path / "table.md").read_text()
    assert told.endswith(notes)
    assert "gone" not in told


def test_where_a_compiler_was_not_asked_the_table_says_so(compiled):
    row = {"seconds": 1.0, "code": 1, "temporaries": 1, "loops": 0, "flops": 1.0, "bytes": 1.0, "products": 0.0}
    assert compiled.line("f", 8, row | {"exchanged": {}, "placed": True}).endswith(
        "| nothing; placed by the compiler |"
    )
    assert compiled.line("f", 8, row | {"exchanged": {}, "placed": False}).endswith("| nothing |")


def test_what_does_not_compile_is_told(compiled):
    def wrong(x):
        raise ValueError("no\nmore")

    row = compiled.attempt(wrong, (compiled.form(2),), 2, jax.devices("cpu")[:1], "cpu")
    assert row == {"why": "ValueError: no"}


@pytest.mark.slow
@pytest.mark.parametrize("chips", [1, 8])
def test_the_smallest_programs_compile_for_a_tpu(compiled, chips, tmp_path):
    pytest.importorskip("libtpu", reason="libtpu is not installed: pip install 'jaxdict[bench]' on Linux")
    names = "objective", "residual", "encode: plain JAX", "conditions.barycentre"
    only = f"^({'|'.join(names)})$"
    compiled.main(["--part", "all", "--chips", str(chips), "--only", only, "--out", str(tmp_path / "table.md")])
    rows = json.loads((tmp_path / "table.json").read_text())
    assert rows
    for name, row in rows.items():
        assert "why" not in row, (name, row)
        assert row["temporaries"] < 16e9
        assert chips > 1 or not row["exchanged"]
        assert set(row["exchanged"]) <= {"all-reduce"}, (name, row["exchanged"])
