"""File formats, between bytes and arrays: what is read is checked, what is written is whole."""
