"""Hostile inputs by group, and the runner that detects failures; for scripts/fuzz.py."""
