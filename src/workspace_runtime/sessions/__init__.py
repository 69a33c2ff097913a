"""Agent sessions: their states, their actors, their permissions and the drivers of the agents."""
