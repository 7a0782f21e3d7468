"""Accuracies with their intervals, and the baselines printed beside every result."""
