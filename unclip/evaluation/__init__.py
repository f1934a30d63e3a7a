"""What came out, measured: one file a question, and the report that holds all answers."""
