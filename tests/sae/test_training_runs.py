"""Trained on planted codes: every architecture beats its start, is as sparse as asked, and codes at the end as it did in training."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdict as jd
from jaxdict.files import Shards
from jaxdict.numerics import unit_rows
from jaxdict.sae import trainers
from jaxdict.sae.trainers import running, steps
from jaxdict.sae.trainers.architectures import Here
from jaxdict.sae.trainers.asking import KINDS, asked
from jaxdict.sae.trainers.steps import State, first_state, origin

D, K, TRUE = 8, 16, 12
draw = np.random.default_rng(0)
ATOMS = np.asarray(unit_rows(jnp.asarray(draw.normal(size=(TRUE, D)))))
CODES = draw.exponential(size=(2000, TRUE)) * (draw.uniform(size=(2000, TRUE)) < 0.15)
X = 3.0 * (CODES @ ATOMS) + 5.0 + 0.01 * draw.normal(size=(2000, D))
SIZES = {"batch_size": 128, "learning_rate": 1e-2}
# How sparse, in units of X: its mean square about the median is about 16.
SPARSE = {
    "standard": {"lam": 0.3},
    "gated": {"lam": 1.0},
    "jumprelu": {"lam": 0.3},
    "p_anneal": {"lam": 0.3},
    "topk": {"k": 2},
    "batchtopk": {"k": 2},
    "matryoshka": {"k": 2},
    "matching_pursuit": {"k": 2},
}


@pytest.fixture(scope="module", params=SPARSE)
def run(request):
    """An SAE of each architecture, with the same one after a single step that leaves it where it starts."""
    name = request.param
    options = {"key": jax.random.key(1), "architecture": name, **SPARSE[name], **SIZES}
    start = jd.sae.train(X, K, **options | {"steps": 1, "learning_rate": 1e-9})
    return name, start, jd.sae.train(X, K, steps=600, **options)


def explained(sae) -> float:
    return 1 - float(np.sum((X - np.asarray(sae(X))) ** 2) / np.sum((X - X.mean(0)) ** 2))


def l0(sae) -> float:
    return float(np.mean(np.sum(np.asarray(sae.encode(X)) != 0, axis=1)))


def test_it_learns(run):
    name, start, sae = run
    assert explained(sae) > max(0.7, explained(start)), (explained(start), explained(sae))
    if "k" in SPARSE[name]:
        assert l0(sae) == pytest.approx(SPARSE[name]["k"], abs=0.3)
    else:
        assert l0(sae) < min(8, l0(start))
    np.testing.assert_allclose(sae.norms, 1, rtol=1e-12)


def test_a_saved_folder_loads_to_the_same_numbers(run, tmp_path):
    name, _, sae = run
    again = jd.sae.load(jd.sae.save(sae, tmp_path / name))
    assert again.activation == sae.activation
    told = ("architecture", "lam", "trained_as", "prefixes", "penalty", "power")
    assert [getattr(again.metadata, part) for part in told] == [getattr(sae.metadata, part) for part in told]
    # SAELens' files have a pursuit's atoms with their norms, the canonical gauge has them aside: then to rounding.
    same, rounding = (again, 0) if sae.ranking is None else (again.canonical(), 1e-9)
    np.testing.assert_allclose(same.encode(X), sae.encode(X), rtol=rounding, atol=rounding)
    np.testing.assert_allclose(again(X), sae(X), rtol=rounding)
    assert sae.lam == (SPARSE[name]["lam"] if name == "standard" else None)


def test_it_says_how_it_was_trained(run):
    name, _, sae = run
    stored = {"gated": "jumprelu", "batchtopk": "jumprelu", "matryoshka": "jumprelu", "p_anneal": "standard"}
    told = {"gated": "gated", "batchtopk": "batchtopk", "matryoshka": "matryoshka_batchtopk", "p_anneal": "p_anneal"}
    assert (sae.metadata.architecture, sae.metadata.trained_as) == (stored.get(name, name), told.get(name))
    assert sae.metadata.prefixes == ((1, 2, 4, 8, 16) if name == "matryoshka" else ())
    assert (sae.metadata.penalty, sae.metadata.power) == (("power", 0.2) if name == "p_anneal" else (None, None))


@pytest.mark.parametrize("name", SPARSE)
def test_inference_is_what_training_computed(name):
    """The residuals of a batch at random parameters, with thresholds of batch top-k set where that batch has them."""
    kind = asked(name, K, SPARSE[name].get("lam"), SPARSE[name].get("k"))
    start = origin(jnp.asarray(X), True)
    state = first_state(kind, jax.random.key(0), start, K)
    wild = lambda leaf: leaf + 0.2 * jnp.asarray(np.random.default_rng(1).normal(size=leaf.shape))  # noqa: E731
    params, x = jax.tree.map(wild, state.params), jnp.asarray(X[:50]) * start.scale
    scalar = lambda value: jnp.asarray(float(value))  # noqa: E731
    none = state.unused > 9
    here = Here(
        scalar(0.1), scalar(SPARSE[name].get("k", 0)), scalar(0), scalar(10), none, jnp.any(none), state.running
    )
    _, seen = kind.loss(params, x, here)
    if name in ("batchtopk", "matryoshka"):
        seen = seen._replace(
            running=seen.running * (1 - 1e-9)
        )  # codes strictly above it stay, and so must the least one
    sae = running._finished(kind, State(params, None, state.unused, seen.running), start, None, here.k.item())
    np.testing.assert_allclose((X[:50] - sae(X[:50])) * start.scale, seen.residual, rtol=1e-9, atol=1e-9)


def test_a_pursuits_atoms_find_their_own_norms(run):
    """In training's gauge products are with the atoms themselves: what ranks them is one over their norm, and norms do not stay one."""
    name, start, sae = run
    if name == "matching_pursuit":
        np.testing.assert_allclose(sae.W_enc, sae.W_dec.T / np.asarray(sae.ranking) ** 2, rtol=1e-12)
        assert np.ptp(start.ranking) < 1e-6
        assert np.min(1 / np.asarray(sae.ranking)) < 0.95


def test_scaling_is_folded_in():
    """Rows ten times as large, lam as large as keeps its meaning: the same SAE, ten times as large."""
    for name, lams in (("standard", (0.3, 3.0)), ("jumprelu", (0.3, 30.0))):
        options = {"key": jax.random.key(0), "architecture": name, "steps": 30, **SIZES}
        small, large = (jd.sae.train(X * s, K, lam=lam, **options) for s, lam in zip((1, 10), lams, strict=True))
        np.testing.assert_allclose(large(10 * X), 10 * small(X), rtol=1e-6)
        np.testing.assert_allclose(large.encode(10 * X), 10 * small.encode(X), rtol=1e-6, atol=1e-6)
    unscaled = jd.sae.train(X, K, lam=0.3, scaled=False, **{**options, "architecture": "standard"})
    assert (
        np.max(np.abs(unscaled(X) - jd.sae.train(X, K, lam=0.3, **{**options, "architecture": "standard"})(X))) > 0.01
    )


def test_offset_starts_at_the_geometric_median():
    skew = X.copy()
    skew[:100] += 300
    sae = jd.sae.train(skew, K, key=jax.random.key(0), lam=0.3, steps=1, batch_size=8, learning_rate=1e-9)
    pulls = (skew - sae.b_dec) / np.linalg.norm(skew - sae.b_dec, axis=1, keepdims=True)
    assert np.linalg.norm(pulls.mean(0)) < 1e-3


def test_dead_latents_are_reborn_where_residuals_want_an_atom():
    """All latents but one point away from the data; T10's atoms are the planted ones they then become."""
    lam, kind = 0.05, trainers.Standard()
    start = origin(jnp.asarray(X), True)
    state = first_state(kind, jax.random.key(0), start, K)
    dead = np.arange(K) > 0
    params = state.params._replace(b_enc=jnp.where(dead, -100.0, state.params.b_enc))
    state = state._replace(params=params, unused=jnp.where(dead, 9, 0).astype(jnp.int32))
    ones = jnp.ones(running.STEPS_PER_LOOK)
    course = steps.Course(
        1e-9 * ones, lam * ones, jnp.asarray(0.0), jnp.asarray(100.0), jnp.asarray(10, jnp.int32), start.scale
    )
    at = lambda step: steps.one_step(kind, state, jnp.asarray(X), course, jnp.asarray(0), jnp.asarray(step))[0]  # noqa: E731
    assert np.all(np.asarray(at(8).params.b_enc)[dead] < -99)  # only every tenth step
    assert np.all(np.asarray(at(89).params.b_enc)[dead] < -99)  # and not at the end
    reborn = at(9)
    born = np.asarray(reborn.params.b_enc) == 0
    np.testing.assert_array_equal(born, dead)
    assert np.all(np.asarray(reborn.unused)[dead] == 0)
    np.testing.assert_array_equal(reborn.moments.nu.W_dec[dead], 0)
    found = np.asarray(unit_rows(reborn.params.W_dec))[dead]
    assert np.mean(np.max(found @ ATOMS.T, axis=1)) > 0.8
    fired = np.any(np.asarray(jax.nn.relu((X * start.scale - params.b_dec) @ reborn.params.W_enc)) > 0, axis=0)
    assert np.all(fired)


def test_dead_latents_of_a_topk_learn_what_others_leave():
    """Latents with codes too small to win are taught by an error of their own; without it they stay exactly where they are."""
    start, ones = origin(jnp.asarray(X), True), jnp.ones(running.STEPS_PER_LOOK)
    weak = np.arange(K) > 3
    scalar = lambda value: jnp.asarray(float(value))  # noqa: E731
    course = steps.Course(0.01 * ones, 0 * ones, scalar(1), scalar(100), jnp.asarray(5, jnp.int32), start.scale)
    found = {}
    for share in (1.0, 0.0):
        kind = trainers.TopK(auxiliary=share)
        state = first_state(kind, jax.random.key(0), start, K)
        scale, bias = jnp.where(weak, 0.02, 1.0), jnp.where(weak, 0.0, 2.0)
        first = state.params._replace(W_enc=scale * state.params.W_enc, b_enc=bias)
        state = state._replace(params=first, unused=jnp.where(weak, 9, 0).astype(jnp.int32))
        for step in range(60):
            state, _ = steps.one_step(kind, state, jnp.asarray(X[:500]), course, jnp.asarray(0), jnp.asarray(step))
        found[share] = np.asarray(state.params.W_enc), int(np.sum(np.asarray(state.unused)[weak] < 5))
    np.testing.assert_array_equal(found[0.0][0][:, weak], np.asarray(first.W_enc)[:, weak])
    assert found[0.0][1] == 0
    assert found[1.0][1] >= 6  # of twelve


def test_lam_warms_up_and_rates_follow_a_schedule():
    options = {"key": jax.random.key(0), "lam": 0.3, "steps": 120, **SIZES}
    plain = jd.sae.train(X, K, **options)
    warmed = jd.sae.train(X, K, **options, lam_warm_up=100)
    assert l0(warmed) != l0(plain)
    rate = lambda step: running.warm_up_and_decay(jnp.asarray(1e-2), step, 120)  # noqa: E731
    same = jd.sae.train(X, K, **options | {"learning_rate": rate})
    np.testing.assert_allclose(same.W_dec, plain.W_dec, rtol=1e-9)
    still = jd.sae.train(X, K, **options | {"learning_rate": optax.constant_schedule(0.0)})
    # Rows start ten times shorter than their encoder, which is their transpose.
    np.testing.assert_allclose(still.W_enc, 0.01 * still.W_dec.T, rtol=1e-12)


@pytest.mark.parametrize(("name", "gain"), [("topk", 0.01), ("gated", 0.01), ("jumprelu", 1.0)])
def test_where_training_starts(name, gain):
    """Encoder rows and decoder rows of norm 0.1, or 1, are with unit decoder rows an encoder of norm 0.01, or 1."""
    options = {**SIZES, "key": jax.random.key(0), "steps": 2, "learning_rate": optax.constant_schedule(0.0)}
    still = jd.sae.train(X, K, architecture=name, **SPARSE[name], **options)
    np.testing.assert_allclose(still.W_enc, gain * still.W_dec.T, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["standard", "jumprelu", "topk", "matryoshka", "matching_pursuit"])
def test_many_runs_are_each_ones_own(name):
    """Two keys, two sparsities, one program: what `train` gives for each."""
    keys = jax.random.split(jax.random.key(5), 2)
    which = "lam" if "lam" in SPARSE[name] else "k"
    values = [0.2, 0.4] if which == "lam" else [1, 3]
    options = {"architecture": name, "steps": 40, "dead_steps": 15, **SIZES}
    losses = []
    many = jd.sae.train_batch(X, K, keys=keys, **{which: values}, **options, callback=lambda *told: losses.append(told))
    for key, value, sae in zip(keys, values, many, strict=True):
        alone = jd.sae.train(X, K, key=key, **{which: value}, **options)
        assert sae.activation == alone.activation
        assert sae.metadata == alone.metadata
        np.testing.assert_allclose(sae.W_dec, alone.W_dec, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(sae(X), alone(X), rtol=1e-6, atol=1e-6)
    assert losses[0][2].shape == (2,)


def test_many_runs_leave_out_what_only_dead_latents_call_for():
    """A branch of the whole program, not of each run, where vmap would compute both sides for all."""
    kind, start, ones = asked("topk", K, None, 2), origin(jnp.asarray(X), True), jnp.ones(running.STEPS_PER_LOOK)
    keys, scalar = jax.random.split(jax.random.key(0), 2), jnp.asarray(1.0)
    states = steps.first_states(kind, keys, start, K)
    course = steps.Course(ones, jnp.stack([ones, ones]), jnp.ones(2), scalar, jnp.asarray(5, jnp.int32), scalar)
    span = jnp.asarray(0), jnp.asarray(3)
    program = jax.make_jaxpr(partial(steps.some_steps_of_all, kind, size=8))(
        states, keys, jnp.asarray(X), course, *span
    )
    assert "cond[" in str(program)


def test_many_runs_refuse_what_does_not_fit(tmp_path):
    keys = jax.random.split(jax.random.key(5), 2)
    with pytest.raises(ValueError, match=r"lam has shape \(3,\) but there are 2 keys"):
        jd.sae.train_batch(X, K, keys=keys, lam=[0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="k is 99"):
        jd.sae.train_batch(X, K, keys=keys, k=[1, 99], architecture="topk")
    with pytest.raises(ValueError, match="rows in memory"):
        jd.sae.train_batch(Shards([X]), K, keys=keys, lam=0.1, steps=3)


def test_rows_on_disk_are_each_read_once_an_epoch(tmp_path):
    """A memory map, shards and batches: as many steps as epochs ask for, each row in one batch of each; the same from all three."""
    np.save(tmp_path / "x.npy", X)
    stored = np.load(tmp_path / "x.npy", mmap_mode="r")
    options = {"key": jax.random.key(2), "lam": 0.3, "epochs": 3, "batch_size": 500, "learning_rate": 1e-2}
    told = []
    mapped = jd.sae.train(stored, K, **options, callback=lambda *one: told.append(one))
    assert [one[:2] for one in told] == [(12, 12)]
    shards = jd.sae.train(Shards([stored[:700], stored[700:]]), K, **options)
    np.testing.assert_array_equal(shards.W_dec, mapped.W_dec)
    batched = jd.sae.train([X[:900], X[900:]], K, **options)
    assert abs(explained(batched) - explained(mapped)) < 0.2
    reader = running.rows_of(stored, 500, jax.random.key(0))
    coming = reader._from(0)
    epochs = [np.concatenate([next(coming) for _ in range(4)]) for _ in range(2)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch[:, 0]), np.sort(X[:, 0]))
    assert not np.array_equal(*epochs)
    np.testing.assert_array_equal(next(reader._from(5)), epochs[1][500:1000])


def test_bad_rows_on_disk_are_refused_by_number():
    bad = X.copy()
    bad[1500, 2] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        jd.sae.train(Shards([bad]), K, key=jax.random.key(0), lam=0.3, epochs=1, batch_size=100)


def test_names_are_those_of_the_classes():
    assert set(KINDS) == set(SPARSE)
    options = {"key": jax.random.key(1), "steps": 5, **SIZES}
    for name, kind in KINDS.items():
        if name == "topk":
            by_name, by_class = (jd.sae.train(X, K, architecture=one, k=2, **options) for one in (name, kind()))
            np.testing.assert_array_equal(by_name.W_dec, by_class.W_dec)
