"""Features, statistics, metrics, the sweep and its report; read checkpoints.py first."""
