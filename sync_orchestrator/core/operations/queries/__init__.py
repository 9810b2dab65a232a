"""The SQL statements of ``core/operations``, in one module for each subject."""
