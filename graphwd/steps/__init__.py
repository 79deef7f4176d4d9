"""Steps that live in Python: read, rewritten, emitted again."""
