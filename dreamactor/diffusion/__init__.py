"""Flow matching and inference; a backbone is just a callable here."""
