"""SynthSAEBench: features with firing laws, hierarchies and correlations, by key or as its own package saved them (arXiv 2602.14687)."""
