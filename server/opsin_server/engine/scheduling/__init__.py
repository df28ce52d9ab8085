"""What a step computes: sequences, and the ledgers of what they hold. No torch."""
