"""The ledger of change events: recording, the states of an event, and the counts that must add up."""
