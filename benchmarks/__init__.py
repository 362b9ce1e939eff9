"""Measurements of speed, memory and quality; each script runs on its own."""
