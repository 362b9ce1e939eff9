"""Measurements that back the claims of docs/, a folder for each question; see README.md."""
