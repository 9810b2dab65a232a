"""Message brokers: changes come in, outcomes go out. Not here: what happens to either (``core/``)."""
