"""A blinded study with human raters: plan it, serve it, report it."""
