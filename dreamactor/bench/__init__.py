"""Metrics, baselines and tables: how good a result is, measured against truth."""
