"""From image files to databases to batches.

Read images.py for what a sample is, then lmdb_layout.py for what a database holds.
"""
