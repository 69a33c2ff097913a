"""Health and facts about the server itself."""
