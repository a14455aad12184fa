"""Codes between one matmul and the optimum: steps written out, with learned numbers or none, and exact codes started from an SAE's."""
