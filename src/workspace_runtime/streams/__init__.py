"""How events leave the server: WebSocket, server-sent events and their typed frames."""
