"""Messages to people outside the platform: what is told, when, and through which channel."""
