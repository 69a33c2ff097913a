"""Who may connect: the peer's user, the token, `Host` and `Origin`."""
