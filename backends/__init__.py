"""The adapters, one file a framework, same order, same shape."""
