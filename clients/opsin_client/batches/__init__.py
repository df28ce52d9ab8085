"""`opsin batches`: the batches of requests of a server, from the terminal, through OpenAI's SDK."""
