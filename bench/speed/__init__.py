"""Milliseconds and bytes: attention alone, a step of the engine, a long generation, a server under load."""
