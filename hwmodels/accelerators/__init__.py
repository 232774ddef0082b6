"""Cost models of accelerators, and what they have in common: the layer as matrix products, and its footprint."""
