"""Training of sparse autoencoders: one step for all architectures, each of them a loss and an inference form."""

from jaxdict.sae.trainers.architectures import Architecture
from jaxdict.sae.trainers.counted import BatchTopK, MatchingPursuit, Matryoshka, TopK
from jaxdict.sae.trainers.penalised import Gated, JumpReLU, PAnneal, Standard
