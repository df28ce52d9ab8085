"""Everything that makes opsin-mini, the embedded demonstration model: its pictures, questions, training and marks."""
