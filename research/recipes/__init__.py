"""Trainings of equal time, side by side: compare.py trains and evaluates a list of recipes."""
