"""What every family is made of: the modules that serve and train, driven by specs."""
