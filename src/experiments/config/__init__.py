"""What a user may say: composing, checking and building a configuration."""
