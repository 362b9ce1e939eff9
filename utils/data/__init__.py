"""From files to databases to batches; read lmdb_layout.py first."""
