"""What requests and responses hold, field by field."""
