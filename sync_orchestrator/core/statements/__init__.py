"""Every statement of the hot path, named, by what it touches. Parameters are bound; batches come as arrays."""
