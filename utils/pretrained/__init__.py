"""Weights from elsewhere: downloads, encoders, checkpoint files.

Read encoders.py first.
"""
