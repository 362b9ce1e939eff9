"""Measurements that back what docs/ says, a folder for each question; see README.md."""
