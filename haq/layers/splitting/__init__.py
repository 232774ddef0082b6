"""Modules that hold several weights, changed so that each weight is a layer of its own."""
