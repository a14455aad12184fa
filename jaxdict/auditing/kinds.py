"""What an SAE was trained on, as far as its activation, its architecture's name and its metadata say."""

from jaxdict.sae.models import SAE

# Architectures with a relu and another penalty than L1, as their writers name them.
OTHER_PENALTIES = ("panneal", "matryoshka")
# Activations whose loss knows supports and reconstructions alone, unless the architecture's name says that there is more to it.
BY_SUPPORTS = ("topk", "jumprelu", "groupmax")
WITH_MORE = ("gated", "tanh", *OTHER_PENALTIES)


def has_l1_penalty(sae: SAE) -> bool:
    """Whether an SAE was trained with the penalty of problem P: a relu, and no other penalty by name, or a lam in its metadata.

    >>> import jax.numpy as jnp
    >>> from jaxdict.sae.activations import Activation
    >>> bare = jnp.eye(2), jnp.zeros(2), jnp.eye(2), jnp.zeros(2)
    >>> has_l1_penalty(SAE(*bare)), has_l1_penalty(SAE(*bare, activation=Activation("topk", k=1)))
    (True, False)
    """
    return (sae.activation.kind == "relu" and not _named(sae, OTHER_PENALTIES)) or sae.lam is not None


def by_supports(sae: SAE) -> bool:
    """Whether supports and reconstructions alone make up an SAE's training loss.

    >>> import jax.numpy as jnp
    >>> from jaxdict.sae.activations import Activation
    >>> bare = jnp.eye(2), jnp.zeros(2), jnp.eye(2), jnp.zeros(2)
    >>> by_supports(SAE(*bare)), by_supports(SAE(*bare, activation=Activation("topk", k=1)))
    (False, True)
    """
    return sae.activation.kind in BY_SUPPORTS and sae.lam is None and not _named(sae, WITH_MORE)


def _named(sae: SAE, words: tuple[str, ...]) -> bool:
    """Whether the architecture's name has one of these in it."""
    name = sae.metadata.architecture.lower().replace("_", "")
    return any(word in name for word in words)
