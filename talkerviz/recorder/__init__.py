"""Recorder of module calls: runs a model and logs every call as a trace."""
