"""What is known of a system that is called: breaker, limits, logins, accounts, pauses and heartbeats of runs.

Most of it is shared by all processes through the database. It sends no requests.
"""
