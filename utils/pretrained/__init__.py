"""Weights from elsewhere: downloads, encoders, checkpoint files; read encoders.py first."""
