"""Workspace Runtime: the server inside a development workspace that runs coding agents and streams what they do."""

__version__ = "0.1.0"
