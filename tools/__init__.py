"""Measurements for research on language-free conditions; each script runs by itself."""
