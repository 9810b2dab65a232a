"""The archive: merging the parts of a record into its newest known state, behind a version guard for each part.

It decides neither when a record is read nor when it is pushed.
"""
