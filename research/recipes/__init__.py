"""Parts of research/recipes/time_to_quality.py, which compares recipes of training.

Read recipe.py first. trainings.py finds the steps that fit into the time, jury.py judges a network,
measure.py does one run, results.py keeps all runs, table.py and plot.py show them.
"""
