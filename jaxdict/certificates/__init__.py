"""Certificates: optimality of a point, recomputed from the point alone."""
