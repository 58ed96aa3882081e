"""Examples that run on servers of their own."""
