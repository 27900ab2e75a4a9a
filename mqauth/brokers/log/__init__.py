"""What every client of a log broker shares, on threads: the runner of the delivery engine, and records."""
