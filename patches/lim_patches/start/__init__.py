"""Hooks that every process registers with the plugin."""
