"""The FastAPI example under load, while its flusher is killed."""
