"""compare.py's parts: the study file, sizes for a budget, running the program, results."""
