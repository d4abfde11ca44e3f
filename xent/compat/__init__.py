"""Other libraries' names for the same losses, one file a library: change the import, keep the call."""
