"""Many workers, one list of items: each made once, whole, whoever dies on the way."""
