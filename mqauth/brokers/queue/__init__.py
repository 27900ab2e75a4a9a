"""What every asyncio client of a queue broker shares: the runner of the delivery engine."""
