"""The intake of change notifications over HTTP."""
