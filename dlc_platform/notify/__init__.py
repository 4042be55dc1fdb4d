"""Messages to people outside the platform: their content, their time, and their channel."""
