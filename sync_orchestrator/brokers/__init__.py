"""Message brokers: changes come in, outcomes go out."""
