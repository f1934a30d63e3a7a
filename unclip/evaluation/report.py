"""The evaluate stage: runs every measurement and writes the report."""
