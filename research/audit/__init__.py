"""Compares what an audit predicts of words with what trained networks show (docs/audit.md)."""
