"""The system without Dagster, web framework or HTTP client: rules, tables, statements and the work done with them."""
