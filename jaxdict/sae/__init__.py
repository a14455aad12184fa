"""Trained sparse autoencoders: read them from any package's files, run them, write them for others; encoders that do more."""

from jaxdict.sae.activations import Activation
from jaxdict.sae.amortised.coordinates import CoordinateEncoder, unroll_moves
from jaxdict.sae.amortised.gradient import UnrolledEncoder, unroll
from jaxdict.sae.amortised.optimum import amortisation_gap, exact_codes
from jaxdict.sae.amortised.training import train_unrolled
from jaxdict.sae.encoders import fitted_sae, tied_sae
from jaxdict.sae.formats import FORMATS, load
from jaxdict.sae.models import SAE, Metadata, check_activations
from jaxdict.sae.saving import save
from jaxdict.sae.trainers.penalised import training_loss
from jaxdict.sae.trainers.running import train, train_batch
from jaxdict.sae.transcoders import Transcoder
