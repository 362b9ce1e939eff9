"""How good images are against the time to sample them: docs/sampling.md."""
