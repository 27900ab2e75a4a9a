"""An application of three FastStream services: RabbitMQ, both brokers, Kafka. ``test_faststream_shop`` runs it."""
