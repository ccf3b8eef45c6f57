"""Models of transformers: built from a `config.json`, and run on inputs of the right kind."""
