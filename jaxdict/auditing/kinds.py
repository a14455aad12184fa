"""What an SAE was trained on, as far as its activation, its architecture's name and its metadata say."""

from jaxdict.sae.models import SAE

# Activations whose loss knows supports and reconstructions alone, unless the architecture's name says that there is more to it.
BY_SUPPORTS = ("topk", "jumprelu", "groupmax")
WITH_MORE = ("gated", "tanh")


def has_l1_penalty(sae: SAE) -> bool:
    """Whether an SAE was trained with the penalty of problem P: a relu, and no other penalty by name, or a lam in its metadata.

    >>> import jax.numpy as jnp
    >>> from jaxdict.sae.activations import Activation
    >>> bare = jnp.eye(2), jnp.zeros(2), jnp.eye(2), jnp.zeros(2)
    >>> has_l1_penalty(SAE(*bare)), has_l1_penalty(SAE(*bare, activation=Activation("topk", k=1)))
    (True, False)
    """
    return sae.lam is not None or (
        sae.activation.kind == "relu" and not has_prefixes(sae) and not has_power_penalty(sae)
    )


def by_supports(sae: SAE) -> bool:
    """Whether supports and reconstructions alone make up an SAE's training loss.

    >>> import jax.numpy as jnp
    >>> from jaxdict.sae.activations import Activation
    >>> bare = jnp.eye(2), jnp.zeros(2), jnp.eye(2), jnp.zeros(2)
    >>> by_supports(SAE(*bare)), by_supports(SAE(*bare, activation=Activation("topk", k=1)))
    (False, True)
    """
    more = has_prefixes(sae) or has_power_penalty(sae) or _named(sae, WITH_MORE)
    return sae.activation.kind in BY_SUPPORTS and sae.lam is None and not more


def has_prefixes(sae: SAE) -> bool:
    """Whether an SAE is a Matryoshka, its loss a sum over prefixes of its features: by its metadata, or by name.

    >>> import jax.numpy as jnp
    >>> from jaxdict.sae.models import Metadata
    >>> bare = jnp.eye(2), jnp.zeros(2), jnp.eye(2), jnp.zeros(2)
    >>> has_prefixes(SAE(*bare)), has_prefixes(SAE(*bare, metadata=Metadata(prefixes=(1, 2))))
    (False, True)
    """
    return bool(sae.metadata.prefixes) or _named(sae, ("matryoshka",))


def has_power_penalty(sae: SAE) -> bool:
    """Whether an SAE's penalty is a power of its codes other than the first, or a norm of such a power (T23), as far as it is said.

    >>> import jax.numpy as jnp
    >>> from jaxdict.sae.models import Metadata
    >>> bare = jnp.eye(2), jnp.zeros(2), jnp.eye(2), jnp.zeros(2)
    >>> has_power_penalty(SAE(*bare)), has_power_penalty(SAE(*bare, metadata=Metadata(penalty="power", power=0.2)))
    (False, True)
    """
    return sae.metadata.penalty is not None or (_named(sae, ("panneal",)) and not _named(sae, ("gated",)))


def _named(sae: SAE, words: tuple[str, ...]) -> bool:
    """Whether the name of the architecture, or of what trained it, has one of these in it."""
    names = [(name or "").lower().replace("_", "") for name in (sae.metadata.architecture, sae.metadata.trained_as)]
    return any(word in name for word in words for name in names)
