"""What people would use instead, each in an environment of its own, set up as its own documents advise."""
