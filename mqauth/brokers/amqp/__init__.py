"""Messages and header values of AMQP 0-9-1, for every client library of RabbitMQ."""
