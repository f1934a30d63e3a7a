"""What a data set of some size will take: bytes, hours and cost, before anything is begun."""
