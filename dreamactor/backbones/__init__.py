"""Image-to-video models behind one protocol; the only place that imports diffusers."""
