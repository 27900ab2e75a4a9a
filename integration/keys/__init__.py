"""Keys on real brokers and real connections: publishing, rotation, revocation, floods, impersonation."""
