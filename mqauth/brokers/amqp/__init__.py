"""What every AMQP 0-9-1 client shares: messages and header values."""
