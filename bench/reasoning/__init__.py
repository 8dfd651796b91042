"""Accuracy, length and speed on reasoning tasks, against a running server."""
