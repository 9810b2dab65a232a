"""Business groups: which exist, and the lease that allows one full sync of a group at a time."""
