"""From a reference and a driving clip to what the backbone is shown."""
