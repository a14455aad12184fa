"""Activations on disk: .npy, .npz, .safetensors, torch, Arrow and Parquet files, folders of these; nothing is ever unpickled."""

from jaxdict.files.activations import open_activations, read_activations
from jaxdict.files.folders import check_writable
from jaxdict.files.readers import safetensors_views
from jaxdict.files.rows import Positions, Rows, Shards, positions, token_ids
