"""Synthetic characters with known truth: two identities that do exactly the same motion."""
