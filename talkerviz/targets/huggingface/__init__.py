"""Hugging Face models: built from a `config.json`, and run on generated inputs."""
