"""Services to copy: one in an event loop, one in threads, one worker. Each is one file of 60 lines at the most."""
