"""Adapts the demo's network to another crop, by each choice of train.adapt (docs/adapting.md)."""
