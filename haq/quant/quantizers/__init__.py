"""Quantizers of one tensor, a ladder: pure functions, straight-through gradients, modules."""
