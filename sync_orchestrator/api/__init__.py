"""The intake of change notifications over HTTP. Not here: what happens to an event afterwards (``core/``)."""
