"""Pseudo cross-identity pairs: generate them, gate them, have them reviewed, reverse them."""
