"""`opsin adapters`: what a server's adapters are told from a terminal."""
