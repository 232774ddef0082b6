"""Quantizers of one tensor, in layers that build on each other: pure functions, straight-through gradients, modules."""
