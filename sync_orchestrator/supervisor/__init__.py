"""The processes of ``up``: starts them, watches them, and ends them with everything that they started."""
