"""Probes: what an edit gives away without an image being judged."""
