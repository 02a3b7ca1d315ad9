"""Hostile inputs by group, and what counts as a failure; scripts/fuzz.py runs them."""
