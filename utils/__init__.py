"""The rooms around the mathematics; docs/architecture.md shows them.

Imports only point down: release, training, evaluation, sampling, data, pretrained, config, base.
"""
