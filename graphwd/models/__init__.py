"""Steps that live in files: SavedModels of both versions and MetaGraphs, edited as protos."""
