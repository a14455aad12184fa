"""The module itself: equations, gauge, limits of its arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdict.sae import SAE, Activation, check_activations
from jaxdict.sae.activations import activate, pursue


def random_sae(key=0, d_in=5, d_sae=8, **fields):
    keys = jax.random.split(jax.random.key(key), 4)
    W_enc, W_dec = jax.random.normal(keys[0], (d_in, d_sae)), jax.random.normal(keys[1], (d_sae, d_in))
    return SAE(W_enc, jax.random.normal(keys[2], (d_sae,)), W_dec, jax.random.normal(keys[3], (d_in,)), **fields)


def test_top_k_with_fewer_than_k_positive_keeps_the_positive_ones():
    pre = jnp.array([[-1.0, 2.0, -3.0, -0.5]])
    np.testing.assert_array_equal(activate(Activation("topk", k=3), pre), [[0, 2, 0, 0]])


def test_threshold_is_strict():
    pre = jnp.array([1.0, 1.0 + 1e-9, 0.5])
    np.testing.assert_array_equal(activate(Activation("jumprelu"), pre, jnp.ones(3)) > 0, [False, True, False])


def test_negative_threshold_still_gives_non_negative_features():
    np.testing.assert_array_equal(activate(Activation("jumprelu"), jnp.array([-0.5, 0.5]), -jnp.ones(2)), [0, 0.5])


def test_ranking_decides_who_competes_and_leaves_values_alone():
    pre, ranking = jnp.array([3.0, 2.0, 1.0]), jnp.array([0.1, 1.0, 5.0])
    np.testing.assert_array_equal(activate(Activation("topk", k=1), pre, ranking=ranking), [0, 0, 1])
    np.testing.assert_array_equal(activate(Activation("abstopk", k=1), -pre, ranking=ranking), [0, 0, -1])


def test_pursuit_on_orthonormal_atoms_is_exact_and_stops():
    x = jnp.array([[3.0, 1.0, 0.0], [0.0, 0.0, 0.0], [-1.0, 2.0, 0.0]])
    f = pursue(Activation("matching_pursuit", k=50), x, jnp.eye(3), jnp.eye(3))
    np.testing.assert_array_equal(f, jnp.maximum(x, 0))


def test_pursuit_repeats_only_where_it_may():
    # One atom of norm 1/2 takes 1/4 of the residual at a time, so it would be chosen for ever.
    atoms, x = jnp.array([[0.5]]), jnp.array([[1.0]])
    once = pursue(Activation("matching_pursuit", k=20), x, atoms.T, atoms)
    many = pursue(Activation("matching_pursuit", k=20, stop_on_repeat=False), x, atoms.T, atoms)
    np.testing.assert_allclose(once, [[0.5 + 0.375]])  # the repeat that ends it is kept
    np.testing.assert_allclose(many, [[2 * (1 - 0.75**20)]], rtol=1e-6)


def test_constant_norm_of_a_zero_row_is_finite():
    sae = random_sae(normalisation="constant_norm_rescale")
    assert bool(jnp.all(jnp.isfinite(sae(jnp.zeros((2, 5))))))


def test_decode_of_a_normalising_sae_asks_for_the_input():
    sae, x = random_sae(normalisation="layer_norm"), jnp.arange(10.0).reshape(2, 5)
    np.testing.assert_allclose(sae.decode(sae.encode(x), x), sae(x))
    with pytest.raises(ValueError, match=r"use decode\(f, x\) or sae\(x\)"):
        sae.decode(sae.encode(x))


def test_canonical_keeps_zero_rows_and_is_idempotent():
    sae = random_sae()
    sae = SAE(sae.W_enc, sae.b_enc, sae.W_dec.at[2].set(0), sae.b_dec)
    once, twice = sae.canonical(), sae.canonical().canonical()
    np.testing.assert_array_equal(once.W_dec[2], 0)
    for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(twice), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_rescaled_reads_raw_activations():
    sae, x = random_sae(), jax.random.normal(jax.random.key(9), (4, 5))
    np.testing.assert_allclose(sae.rescaled(3.0)(x), sae(3 * x) / 3, rtol=1e-9)
    np.testing.assert_allclose(sae.rescaled(3.0).encode(x), sae.encode(3 * x), rtol=1e-9)
    for bad in (0, -1, np.inf):
        with pytest.raises(ValueError, match="expected a finite number > 0"):
            sae.rescaled(bad)
    with pytest.raises(ValueError, match="does not go together with layer_norm"):
        random_sae(normalisation="layer_norm").rescaled(2.0)


def test_encoder_is_differentiable_in_weights_and_inputs():
    sae, x = random_sae(), jnp.ones((3, 5))
    gradient = jax.grad(lambda sae: jnp.sum(sae(x) ** 2))(sae)
    assert gradient.W_enc.shape == sae.W_enc.shape
    assert bool(jnp.all(jnp.isfinite(gradient.W_dec)))


def test_products_run_at_the_highest_precision():
    text = str(jax.make_jaxpr(lambda sae, x: sae(x))(random_sae(), jnp.ones((3, 5))))
    assert text.count("dot_general") == text.count("Precision.HIGHEST, Precision.HIGHEST") == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Activation("softmax"), "kind 'softmax' is unknown"),
        (lambda: Activation("topk"), "needs k >= 1"),
        (lambda: random_sae(activation=Activation("topk", k=9)), "k=9 does not fit 8 features"),
        (lambda: random_sae(activation=Activation("groupmax", k=3)), "k=3 does not fit 8 features"),
        (lambda: random_sae(activation=Activation("jumprelu")), "needs a threshold"),
        (lambda: random_sae(normalisation="batch"), "normalisation='batch' is unknown"),
        (lambda: SAE(jnp.ones((5, 8)), jnp.ones(8), jnp.ones((5, 8)), jnp.ones(5)), "W_enc has shape"),
    ],
)
def test_misuse_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.zeros((3, 4), np.float32), "have width 4, the SAE reads d_in = 5"),
        (np.zeros((3, 0), np.float32), "are empty"),
        (np.zeros((0, 5), np.float32), "are empty"),
        (np.zeros((3, 5), int), "expected floating point numbers"),
        (np.zeros((), np.float32), "are empty"),
    ],
)
def test_activations_that_do_not_fit(X, message):
    with pytest.raises(ValueError, match=message):
        check_activations(random_sae(), X)


def test_heads_get_advice_and_encode_itself_refuses():
    sae = random_sae(d_in=6)
    with pytest.raises(ValueError, match=r"flatten the heads: X.reshape\(\*X.shape\[:-2\], [0-9]+\)"):
        check_activations(sae, np.zeros((7, 2, 3)))
    with pytest.raises(ValueError, match="have width 3, the SAE reads d_in = 6"):
        sae.encode(jnp.zeros((7, 3)))
    check_activations(sae, np.zeros((7, 6), np.float16))
