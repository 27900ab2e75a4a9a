"""The tests that task queues bring for RabbitMQ, run with our adapter on."""
