"""Measurements for research on language-free conditions; each script runs on its own."""
