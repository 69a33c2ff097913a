"""The durable event log and the hub that wakes its subscribers."""
