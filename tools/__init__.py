"""Tools for a user's own runs; each script runs on its own."""
