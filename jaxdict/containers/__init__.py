"""Safe containers of tensors: safetensors, .npz and torch files, read without trust, without pickle and without torch."""
