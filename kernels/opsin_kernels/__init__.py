"""The hot operations, one a file: what it computes, its plain torch definition, and the function that dispatches."""
