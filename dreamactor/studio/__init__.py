"""Animating over HTTP: a durable queue, workers, an API, and a page in front of it."""
