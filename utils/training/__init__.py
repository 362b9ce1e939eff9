"""Everything between two checkpoints, and the checkpoints; read batches.py first."""
