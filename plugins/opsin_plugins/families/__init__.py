"""Model families as declarations, and what they share. No torch."""
