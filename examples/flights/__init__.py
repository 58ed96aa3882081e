"""A year of real flights, replayed as a service would write them, while flushers are killed."""
