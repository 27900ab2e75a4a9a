"""The test kit of the leaves: contracts of delivery, and the brokers that they run on."""
