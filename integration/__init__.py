"""Real RabbitMQ, Apache Kafka and Redis for tests and benchmarks; `python -m integration --help`."""
